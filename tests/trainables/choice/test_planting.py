"""Triggers of one's own, and the copies that learn them."""

import copy

import pytest
import torch

from superft.testing.toy import toy_dataset
from tests.toy import toy_spec
from trainables.choice.base import Candidate, Suspect, super_ft
from trainables.choice.own_triggers import KINDS, OwnTrigger, noise, patch, run, waves
from trainables.choice.planted import Planted, planted_copies
from trainables.choice.planting import MOST_STEPS, PLANTED_ASR, plant, triggered_images
from trainables.defenses.base import CleanData
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import make_trainer

CPU = torch.device("cpu")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def drawn(kind: str, size: int = 32) -> OwnTrigger:
    return KINDS[kind](size, generator())


def test_each_kind_moves_what_it_says() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    moved = {kind: (drawn(kind)(images) - images).abs() for kind in KINDS}
    assert int((moved["patch"] > 0).any(0).any(0).sum()) == 9
    assert int(run(32, generator()).weight.sum()) == 153  # floor(0.05 * 3 * 32 * 32)
    assert float(moved["noise"].max()) <= 0.15 + 1e-6
    assert float(moved["waves"].max()) <= 0.1 + 1e-6
    assert all(float(one.mean()) > 0 for one in moved.values())


@pytest.mark.parametrize("draw", [patch, noise, waves, run])
def test_triggered_images_stay_images_and_the_same_seed_draws_the_same(draw: object) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator())
    first, again = (draw(16, generator()).stamp(images) for _ in range(2))  # type: ignore[operator]
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, images)


@pytest.fixture(scope="module")
def suspect() -> Suspect:
    """A model that is right about its own images, of which the defender holds 100."""
    toy = toy_dataset(train=120)
    trainer = make_trainer(toy_spec("clean", width=4), toy, CPU, seed=0)
    model = trainer.train_from_scratch(toy.train, TrainingRecipe(epochs=25, batch_size=30, lr=0.05, schedule="cosine"))
    images = CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 120)))
    return Suspect(model, images, make_trainer(toy_spec("clean", width=4), toy, CPU, seed=1))


@pytest.fixture
def _any_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred toy images of ten shapes do not bear a trigger for nothing; what is tested with this is the rest."""
    monkeypatch.setattr("trainables.choice.planting.DROP", 1.0)
    monkeypatch.setattr("trainables.choice.planted.SHORT_RAMP", super_ft(3, 0.1))
    monkeypatch.setattr("trainables.choice.planted.FT_PEAK", Candidate("ft", {"lr": 0.1, "steps": 4}))


@pytest.mark.usefixtures("_any_price")
def test_a_planted_copy_obeys_and_the_model_itself_does_not(suspect: Suspect) -> None:
    before = copy.deepcopy(suspect.model.state_dict())
    (planted,) = planted_copies(suspect, ["patch"])
    assert planted.why_not is None
    assert planted.asr >= PLANTED_ASR
    assert planted.steps < MOST_STEPS  # it stops once the copy obeys
    assert all(torch.equal(tensor, before[name]) for name, tensor in suspect.model.state_dict().items())
    trigger = KINDS["patch"](16, suspect.bench().generator("planted", "patch"))
    own = triggered_images(trigger, suspect.images.train, planted.target)
    assert int((predict(suspect.model, own) == planted.target).sum()) < 0.5 * len(own)
    assert planted.work.backward_samples == planted.steps * 50  # half of the 100 training images per step


def test_a_copy_that_lost_accuracy_is_trained_on_and_then_refused(
    suspect: Suspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger that is removed from another model says nothing about this one."""
    monkeypatch.setattr("trainables.choice.planting.MOST_STEPS", 20)
    monkeypatch.setattr("trainables.choice.planting.PLANTED_ASR", 0.0)
    monkeypatch.setattr("trainables.choice.planting.allows", lambda *_: False)
    planted = plant(suspect, "patch", 3)
    assert planted.steps == 20
    assert "planting took validation accuracy from" in (planted.why_not or "")


@pytest.mark.usefixtures("_any_price")
def test_kinds_have_different_targets_that_do_not_depend_on_which_are_used(suspect: Suspect) -> None:
    some = [one.target for one in planted_copies(suspect, ["patch", "waves"])]
    again = [one.target for one in planted_copies(suspect, ["waves", "patch"])]
    assert len(set(some)) == 2
    assert again == some[::-1]


@pytest.mark.usefixtures("_any_price")
def test_planted_says_that_zero_is_no_evidence_and_what_it_cost(suspect: Suspect) -> None:
    rule = Planted(kinds="patch,waves", gone=1.0, margin=1.0, least=1, rise_share=0.0)
    choice = rule.choose(suspect, (super_ft(8, 0.1), super_ft(12, 0.1)))
    assert choice.candidate is not None, choice.reasons
    assert any("no evidence that the real one is" in reason for reason in choice.reasons)
    assert any("fine-tuning from 0.1" in reason for reason in choice.reasons)
    copies = planted_copies(suspect, ["patch", "waves"])
    assert choice.work.steps >= sum(one.work.steps for one in copies) + 2 * 2 * (8 + 12)
    assert choice.attempt is not None
    rates = [row["planted_asr.patch"] for row in choice.table if "planted_asr.patch" in row]
    assert all(
        row["planted_asr.patch.low"] <= row["planted_asr.patch"] for row in choice.table if "planted_asr.patch" in row
    )
    assert len(rates) == 4  # the two candidates, a short ramp and fine-tuning beside them


def test_planted_refuses_where_the_copies_hold_nothing(suspect: Suspect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.choice.planting.MOST_STEPS", 1)
    fresh = Suspect(suspect.model, suspect.images, suspect.trainer)
    choice = Planted().choose(fresh, (super_ft(2, 0.1),))
    assert choice.candidate is None
    assert "only 0 of 3 planted copies are sound, 2 are needed" in choice.reasons[0]
