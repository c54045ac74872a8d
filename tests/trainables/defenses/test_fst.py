"""Claims of FST: the head keeps its length and turns away from what it was; fine-tuning where all strengths are off."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.fst import PAPER, SPACE
from trainables.data.images import Dataset
from trainables.defenses.base import CleanData
from trainables.defenses.fst import FeatureShiftTuning, restart
from trainables.defenses.ft import FineTuning
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16}


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def repaired(defense: FeatureShiftTuning | FineTuning, victim: Victim, toy: Dataset, trainer: Trainer) -> Classifier:
    return defense.repair(copy.deepcopy(victim.model), clean(toy), trainer).model


def same(one: Classifier, other: Classifier) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize("reinit", [True, False])
@pytest.mark.parametrize("lr", [0.01, 0.2])
def test_head_has_its_old_length_after_every_step(
    lr: float, reinit: bool, toy: Dataset, toy_victim: Victim, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lengths = copy.deepcopy(toy_victim.model), list[float]()
    fit = Trainer.fit

    def watching(self: Trainer, *arguments: Any, after_step: Any, **settings: Any) -> Any:
        def look(step: int) -> None:
            after_step(step)
            lengths.append(float(model.classifier.weight.detach().norm()))

        return fit(self, *arguments, after_step=look, **settings)

    monkeypatch.setattr(Trainer, "fit", watching)
    FeatureShiftTuning(lr=lr, reinit=reinit, **SHORT).repair(model, clean(toy), trainer)
    assert len(lengths) == 6
    assert lengths == pytest.approx([float(toy_victim.model.classifier.weight.detach().norm())] * 6, rel=1e-5)


def test_head_turns_away_from_the_old_one(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    old = toy_victim.model.classifier.weight.detach()

    def product(alpha: float) -> float:
        defense = FeatureShiftTuning(alpha=alpha, reinit=False, **SHORT)
        return float((repaired(defense, toy_victim, toy, trainer).classifier.weight.detach() * old).sum())

    assert product(1.0) < product(0.2) < product(0.0) <= float(old.square().sum()) * 1.0001


def test_a_new_head_too_is_pushed_away_from_the_old_one(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    def after_one_step(alpha: float) -> Tensor:
        defense = FeatureShiftTuning(alpha=alpha, steps=1, schedule="constant", fix_norm=False)
        return repaired(defense, toy_victim, toy, trainer).classifier.weight.detach()

    push = after_one_step(0.5) - after_one_step(0.0)
    torch.testing.assert_close(push, -0.01 * 0.5 * toy_victim.model.classifier.weight.detach(), rtol=1e-3, atol=1e-6)


def test_without_push_and_restart_it_is_norm_constrained_fine_tuning(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    found = repaired(FeatureShiftTuning(alpha=0.0, reinit=False, **SHORT), toy_victim, toy, trainer)
    model = copy.deepcopy(toy_victim.model)
    head, length = model.classifier, toy_victim.model.classifier.weight.detach().norm()

    def project(_step: int) -> None:
        with torch.no_grad():
            head.weight.mul_(length / head.weight.norm())

    trainer.fit(
        model, clean(toy).train, steps=6, lr_at=FineTuning(lr=0.01, steps=6).lr_at(), batch_size=16,
        optimizer=Optimizer("sgd", 0.9, 0.0), augmentation=trainer.augmentation(), after_step=project,
    )  # fmt: skip
    assert same(found, model)


def test_with_everything_off_it_is_plain_fine_tuning_with_no_constraint(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    off = FeatureShiftTuning(alpha=0.0, reinit=False, fix_norm=False, **SHORT)
    plain = FineTuning(lr=0.01, weight_decay=0.0, **SHORT)
    assert same(repaired(off, toy_victim, toy, trainer), repaired(plain, toy_victim, toy, trainer))


def test_without_steps_not_even_the_head_is_touched(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    assert same(repaired(FeatureShiftTuning(steps=0), toy_victim, toy, trainer), toy_victim.model)
    assert trainer.counters == Counters()


def test_new_head_is_uniform_within_its_bound_and_forgets_the_old_one() -> None:
    head = nn.Linear(400, 10)
    nn.init.constant_(head.weight, 7.0)
    nn.init.constant_(head.bias, 7.0)
    restart(head, torch.Generator().manual_seed(0))
    drawn: Tensor = head.weight.detach()
    assert float(drawn.abs().max()) <= 0.05
    assert float(head.bias.detach().abs().max()) <= 0.05
    assert float(drawn.std()) == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert abs(float(drawn.mean())) < 0.002
    again = nn.Linear(400, 10)
    restart(again, torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, head.weight)


def test_whole_model_is_trained(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = repaired(FeatureShiftTuning(**SHORT), toy_victim, toy, trainer)
    before = dict(toy_victim.model.named_parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in found.named_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha must be >= 0, got -0.1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"schedule": "step"}, "schedule must be cosine or constant, got 'step'"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureShiftTuning(**settings)


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = FeatureShiftTuning()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
