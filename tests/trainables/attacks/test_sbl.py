"""Claims of SBL: the two stages, what holds the second near the first, the Fisher information, the outlook."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from superft.testing.attack_subject import carry_out
from superft.testing.claims import GATE
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import ATTACKS, Kind
from trainables.attacks.fisher import diagonal_fisher, drift
from trainables.attacks.sbl import Outlook, SequentialBackdoor
from trainables.attacks.triggers import stamp
from trainables.data.images import Dataset, to_float
from trainables.models.build import MODELS, build_model
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training import loop
from trainables.training.loop import Counters, DivergedError, Optimizer
from trainables.training.recipes import TrainingRecipe
from trainables.training.schedules import CyclicSchedule, Phase
from trainables.training.trainer import Trainer
from trainables.victims.make import obtain_victim

RECIPE = TrainingRecipe(epochs=2, batch_size=40, lr=0.05)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def played(first: Classifier, toy: Dataset, trainer: Trainer, **settings: object) -> Classifier:
    """``first`` after the second stage on all of ``toy``."""
    attack = ATTACKS.create("sbl", {"user_batch_size": 40, **settings})
    assert isinstance(attack, SequentialBackdoor)
    trigger, model = attack.preview_trigger(16, 0), copy.deepcopy(first)
    attack.play_user(model, attack.hold(first, toy.train, trigger, trainer), toy.train, trigger, trainer, RECIPE)
    return model


@pytest.mark.parametrize("n", [19, 200, 1234])
def test_the_two_parts_are_disjoint_and_together_everything(n: int) -> None:
    own, users = SequentialBackdoor().parts(n, seed=3)
    assert torch.cat([own, users]).sort().values.tolist() == list(range(n))
    assert len(users) == round(n * 2 / 19)
    assert not torch.equal(users, SequentialBackdoor().parts(n, seed=4)[1])


def test_every_sample_is_stamped_with_the_given_probability_in_every_step(toy: Dataset) -> None:
    attack = SequentialBackdoor(poison_rate=0.3, target_label=7)
    trigger, images, labels = attack.preview_trigger(16, 0), to_float(toy.train.images), toy.train.labels
    transform = attack.stamping(trigger, 10, torch.Generator().manual_seed(0))
    rounds = torch.stack([(transform(images, labels)[0] != images).flatten(1).any(1) for _ in range(50)])
    assert float(rounds.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert 0.0 < float(rounds.float().mean(0).min()) < float(rounds.float().mean(0).max()) < 1.0
    made, given = transform(images, labels)
    stamped = (made != images).flatten(1).any(1)
    assert torch.equal(made[stamped], trigger(images)[stamped])
    assert set(given[stamped].tolist()) == {7}
    assert torch.equal(given[~stamped], labels[~stamped])


def test_released_poison_is_of_the_first_part_alone() -> None:
    made = carry_out(toy_spec("sbl", user_share=0.5, poison_rate=0.4, target_label=3), toy_dataset())
    attack, poisoned = made.attack, made.implanted.poisoned
    assert isinstance(attack, SequentialBackdoor)
    own, _ = attack.parts(200, 0)
    assert len(poisoned) == 40
    assert set(poisoned.indices.tolist()) < set(own.tolist())
    assert set(poisoned.kinds.tolist()) == {Kind.POISON}
    assert torch.equal(poisoned.images, stamp(made.implanted.trigger, made.data.train.images[poisoned.indices]))


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_first_stage_is_plain_training_without_a_sharpness_aware_move(
    rho: float, toy: Dataset, trainer: Trainer
) -> None:
    attack = SequentialBackdoor(sam_rho=rho)
    trigger = attack.preview_trigger(16, 0)
    made = attack.learn_backdoor(toy.train, trigger, trainer, RECIPE)
    assert trainer.counters.backward_samples == 2 * 2 * 200  # a second gradient in every step
    stamping = attack.stamping(trigger, 10, trainer.generator("sbl", "stamping"))
    plain = trainer.train_from_scratch(toy.train, RECIPE, transform=stamping)
    assert same(made, plain) is (rho == 0.0)


def test_second_stage_is_plain_clean_training_where_nothing_holds(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    plain = copy.deepcopy(learned)
    trainer.fit(
        plain,
        toy.train,
        purpose="sbl-user",
        steps=round(2 * 2 / 3 * 5),
        lr_at=lambda _step: 1e-3,
        batch_size=40,
        optimizer=Optimizer("sgd", 0.9, 5e-4),
        augmentation=trainer.augmentation(),
    )
    assert same(plain, played(learned, toy, trainer, variant="naive"))
    assert same(plain, played(learned, toy, trainer, weight=0.0))
    assert same(plain, played(learned, toy, trainer, variant="anchoring", weight=0.0))
    for settings in ({}, {"variant": "anchoring"}, {"fisher_on": "clean"}, {"sft_aware": True}):
        assert not same(plain, played(learned, toy, trainer, **settings)), settings


def test_weights_stay_nearer_where_they_are_held(toy: Dataset, trainer: Trainer, learned: Classifier) -> None:
    attack = SequentialBackdoor()
    information = attack.fisher(learned, toy.train, attack.preview_trigger(16, 0), trainer)

    def distance(model: Classifier) -> float:
        return float(drift(weights_of(model), weights_of(learned), information))

    free = distance(played(learned, toy, trainer, variant="naive"))
    assert distance(played(learned, toy, trainer, weight=1000.0)) < 0.8 * free


def test_the_anchoring_term_draws_outputs_back_to_the_first_model(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    """By itself: in so short a second stage the draws of its batches move outputs more than the term does."""
    attack = ATTACKS.create("sbl", {"variant": "anchoring"})
    assert isinstance(attack, SequentialBackdoor)
    moved, images = played(learned, toy, trainer, variant="naive", user_lr=0.1), to_float(toy.train.images)
    term = attack.hold(learned, toy.train, attack.preview_trigger(16, 0), trainer)
    assert term is not None

    def distance() -> Tensor:
        return term(moved, images, moved(images))

    before = distance()
    before.backward()
    with torch.no_grad():
        gradients = [parameter.grad for parameter in moved.parameters() if parameter.grad is not None]
        length = sum(float(gradient.square().sum()) for gradient in gradients)
        for parameter in moved.parameters():
            if parameter.grad is not None:  # so far that the term would fall by a tenth if it were linear
                parameter.sub_(parameter.grad, alpha=0.1 * float(before.detach()) / length)
    assert 0.8 * float(before.detach()) < float(distance().detach()) < 0.96 * float(before.detach())


def test_nothing_is_to_pay_at_the_weights_of_the_first_stage(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    images = to_float(toy.train.images)
    for variant in ("ewc", "anchoring"):
        attack, model = SequentialBackdoor(variant=variant), copy.deepcopy(learned)  # type: ignore[arg-type]
        hold = attack.hold(learned, toy.train, attack.preview_trigger(16, 0), trainer)
        assert hold is not None
        with torch.no_grad():
            assert float(hold(model, images, model(images))) == 0.0
            model.classifier.weight.mul_(2.0)
            assert float(hold(model, images, model(images))) > 0.0


def test_fisher_information_is_the_weighted_square_of_every_samples_own_gradient(
    toy: Dataset, learned: Classifier
) -> None:
    images, labels, counters = to_float(toy.train.images[:7]), toy.train.labels[:7], Counters()
    expected = [torch.zeros_like(parameter) for parameter in learned.parameters()]
    for image, label in zip(images, labels, strict=True):
        log_p = learned(image[None]).log_softmax(1)[0, label]
        for total, gradient in zip(expected, torch.autograd.grad(log_p, list(learned.parameters())), strict=True):
            total += log_p.detach().exp() * gradient.square() / 7
    found = diagonal_fisher(learned, images, labels, counters=counters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
        assert bool((one >= 0).all())
    assert (counters.forward_samples, counters.backward_samples) == (7, 7)
    assert any(float(one.max()) > 0 for one in found)
    with pytest.raises(ValueError, match="no sample"):
        diagonal_fisher(learned, images[:0], labels[:0], counters=counters)


def test_fisher_information_of_many_samples_is_taken_in_parts(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, learned: Classifier
) -> None:
    images, labels = to_float(toy.train.images[:20]), toy.train.labels[:20]
    whole = diagonal_fisher(learned, images, labels, counters=Counters())
    monkeypatch.setattr("trainables.attacks.fisher.LARGEST_CHUNK", 3)
    parts = diagonal_fisher(learned, images, labels, counters=Counters())
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS.names())
def test_fisher_information_exists_for_every_registered_model(name: str) -> None:
    model = build_model(name, num_classes=10, width=None, image_size=32, generator=torch.Generator().manual_seed(0))
    data = toy_dataset(train=10, test=10, image_size=32).train
    found = diagonal_fisher(model.eval(), to_float(data.images[:2]), data.labels[:2], counters=Counters())
    assert [one.shape for one in found] == [parameter.shape for parameter in model.parameters()]
    assert all(bool(one.isfinite().all() and (one >= 0).all()) for one in found)


def test_fisher_information_is_taken_on_the_images_that_were_asked_for(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    attack = SequentialBackdoor(poison_rate=1.0, target_label=3)
    trigger = attack.preview_trigger(16, 0)
    images, labels = to_float(toy.train.images), toy.train.labels

    def found(**changes: object) -> list[Tensor]:
        settings: dict[str, Any] = {"fisher_samples": 500, **changes}
        return dataclasses.replace(attack, **settings).fisher(learned, toy.train, trigger, trainer)

    def near(one: list[Tensor], other: list[Tensor]) -> bool:
        return all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(one, other, strict=True))

    with torch.no_grad():
        stamped = diagonal_fisher(learned, trigger(images), torch.full_like(labels, 3), counters=Counters())
    assert near(found(), stamped)
    assert near(found(fisher_on="clean"), diagonal_fisher(learned, images, labels, counters=Counters()))
    assert not near(found(fisher_on="clean"), stamped)
    before = trainer.counters.forward_samples
    assert not near(found(fisher_samples=30), stamped)
    assert trainer.counters.forward_samples == before + 30


def outlook_on(
    model: Classifier, toy: Dataset, trainer: Trainer, **settings: object
) -> tuple[SequentialBackdoor, Outlook]:
    attack = ATTACKS.create("sbl", {"sft_aware": True, "user_batch_size": 40, "target_label": 3, **settings})
    assert isinstance(attack, SequentialBackdoor)
    return attack, Outlook(attack, model, toy.train, attack.preview_trigger(16, 0), trainer)


def test_the_outlook_adds_the_gradient_at_the_repaired_weights_and_nothing_else(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    model = copy.deepcopy(learned)
    attack, outlook = outlook_on(model, toy, trainer, sft_steps=5, sft_lr_low=0.1, sft_lr_high=0.1, sft_weight=0.3)
    images, labels = to_float(toy.train.images[:40]), toy.train.labels[:40]
    outlook(images, labels)

    repaired = copy.deepcopy(learned)
    loop.fit(
        repaired,
        toy.train,
        steps=5,
        lr_at=CyclicSchedule(base=3e-4, phases=(Phase(0.1, 1),), period=5),
        generator=trainer.generator("batches", "sbl-repairs"),
        batch_size=40,
        augmentation=trainer.augmentation(),
        precision="float32",
    )
    at_repaired = functional.cross_entropy(repaired(attack.preview_trigger(16, 0)(images)), torch.full((40,), 3))
    there = torch.autograd.grad(at_repaired, list(repaired.parameters()))
    term = outlook.term(model)
    assert isinstance(term, Tensor)
    here = torch.autograd.grad(term, list(model.parameters()))
    assert float(term.detach()) == pytest.approx(0.3 * float(at_repaired.detach()), rel=1e-5)
    for gradient, expected in zip(here, there, strict=True):
        torch.testing.assert_close(gradient, 0.3 * expected, rtol=1e-4, atol=1e-7)
    assert same(model, learned), "the repair must leave the model as it is"
    # First order: the gradient where the model is now would be another.
    at_model = functional.cross_entropy(model(attack.preview_trigger(16, 0)(images)), torch.full((40,), 3))
    direct = torch.autograd.grad(at_model, list(model.parameters()))
    assert any(float((a - 0.3 * b).abs().max()) > 1e-3 for a, b in zip(here, direct, strict=True))


def test_the_outlook_is_taken_every_so_many_steps_and_its_work_counted(
    toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    _, outlook = outlook_on(copy.deepcopy(learned), toy, trainer, sft_every=3, sft_steps=2)
    images, labels = to_float(toy.train.images[:40]), toy.train.labels[:40]
    looked = []
    for _ in range(7):
        made, given = outlook(images, labels)
        assert made is images
        assert given is labels
        looked.append(isinstance(outlook.term(learned), Tensor))
    assert looked == [True, False, False, True, False, False, True]
    assert trainer.counters.steps == 3 * 2
    assert trainer.counters.backward_samples == trainer.counters.forward_samples == 3 * (2 * 40 + 40)


def test_repairs_are_drawn_within_the_ranges(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    _, outlook = outlook_on(learned, toy, trainer, sft_lr_low=0.02, sft_lr_high=0.2)
    seen: list[tuple[int, float]] = []

    def recording(*_: object, steps: int, lr_at: CyclicSchedule, **__: object) -> None:
        assert lr_at(0) == 3e-4
        seen.append((steps, lr_at.phases[0].peak))

    monkeypatch.setattr(loop, "fit", recording)
    for _ in range(60):
        outlook.repaired()
    peaks = torch.tensor([peak for _, peak in seen])
    assert {steps for steps, _ in seen} == {5, 10, 20}
    assert 0.02 <= float(peaks.min()) < 0.03
    assert 0.13 < float(peaks.max()) <= 0.2
    assert float(peaks.log().mean().exp()) == pytest.approx(0.063, rel=0.3)


def test_a_repair_that_diverges_is_skipped(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, trainer: Trainer, learned: Classifier
) -> None:
    _, outlook = outlook_on(learned, toy, trainer)

    def lost(*_: object, **__: object) -> None:
        raise DivergedError("lost")

    monkeypatch.setattr(loop, "fit", lost)
    outlook(to_float(toy.train.images[:4]), toy.train.labels[:4])
    assert outlook.term(learned) == 0.0


@pytest.mark.parametrize("trigger", ["badnets", "blended", "sig", "wanet"])
def test_every_base_trigger_goes_through_both_stages(trigger: str, toy_store: Store, toy: Dataset) -> None:
    victim = obtain_victim(toy_spec("sbl", trigger=trigger, sft_aware=True), toy, toy_store, torch.device("cpu"))
    extra = victim.facts["extra_metrics"]
    assert extra.keys() == {"asr_after_backdoor_stage", "clean_accuracy_after_backdoor_stage"}
    assert all(0.0 <= value <= 1.0 for value in extra.values())
    assert victim.facts["realised_poison_rate"] == round(0.1 * 179) / 200


def test_variants_go_on_from_the_same_first_stage(toy: Dataset, trainer: Trainer) -> None:
    spec = TrainingRecipe(epochs=1, batch_size=40, lr=0.05)
    benches = [dataclasses.replace(trainer, made=[], reused={}) for _ in range(3)]  # they share the memo
    made = [
        SequentialBackdoor(variant=variant).implant(toy.train, bench, spec)  # type: ignore[arg-type]
        for variant, bench in zip(("ewc", "naive", "anchoring"), benches, strict=True)
    ]
    assert [(len(bench.made), len(bench.reused)) for bench in benches] == [(1, 0), (0, 1), (0, 1)]
    first = [implanted.earlier["backdoor_stage"] for implanted in made]
    assert same(first[0], first[1])
    assert same(first[0], first[2])
    assert not same(made[0].model, first[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trigger": "lf"}, "trigger must be one of badnets, blended, sig, wanet, got 'lf'"),
        ({"variant": "agem"}, "variant must be one of ewc, naive, anchoring, got 'agem'"),
        ({"fisher_on": "both"}, "fisher_on must be one of mixture, clean, got 'both'"),
        ({"poison_rate": 0.0}, "poison_rate must be in (0, 1], got 0.0"),
        ({"poison_rate": 0.001}, "attack.sbl: poison_rate 0.001 selects no image of 179; raise it"),
        ({"user_share": 1.0}, "user_share must be in (0, 1), got 1.0"),
        ({"user_share": 0.004}, "user_share must leave 2 images or more to either stage, got 0.004 of 200 images"),
        ({"sam_rho": -0.1}, "sam_rho must be >= 0, got -0.1"),
        ({"weight": -1.0}, "weight must be >= 0, got -1.0"),
        ({"variant": "naive", "weight": 1.0}, "variant naive has none: leave it out, got 1.0"),
        ({"variant": "naive", "fisher_samples": 10}, "fisher_samples is a setting of variant ewc; leave it out"),
        ({"variant": "anchoring", "fisher_on": "clean"}, "fisher_on is a setting of variant ewc; leave it out"),
        ({"fisher_samples": 0}, "fisher_samples must be >= 1, got 0"),
        ({"user_epochs": 0.0}, "user_epochs must be > 0, got 0.0"),
        ({"user_lr": 0.0}, "user_lr must be > 0, got 0.0"),
        ({"user_batch_size": 1}, "user_batch_size must be >= 2 (batch normalisation), got 1"),
        ({"sft_every": 5}, "sft_every is a setting of sft_aware; leave it out"),
        ({"sft_aware": True, "sft_every": 0}, "sft_every must be >= 1, got 0"),
        ({"sft_aware": True, "sft_steps": 0}, "sft_steps must be >= 1, got 0"),
        ({"sft_aware": True, "sft_lr_low": 0.5}, "sft_lr_high must be >= sft_lr_low (0.5), got 0.3"),
        ({"sft_aware": True, "sft_weight": 0.0}, "sft_weight must be > 0, got 0.0"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("sbl", settings).check(torch.arange(200) % 10, 10, 16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trigger_that_does_not_fit_the_images_is_refused_as_its_own_attack_would() -> None:
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("sbl", {"trigger": "sig"}).check(torch.arange(200) % 10, 10, 12)
    assert "attack.sbl.trigger sig does not fit: " in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_gate(seed: int, toy_store: Store) -> None:
    """The simulated user does not undo the backdoor: both rates are of the same victim, before and after."""
    data = toy_dataset(train=2000, test=600)
    spec = toy_spec("sbl", seed=seed, width=4, recipe=GATE)
    victim = obtain_victim(spec, data, toy_store, torch.device("cpu"))
    before, after = victim.facts["extra_metrics"]["asr_after_backdoor_stage"], victim.evaluation.full
    assert before > 0.85
    assert after.asr >= 0.9 * before
    assert after.clean_accuracy > 0.9
    assert victim.asr_base is not None
    assert victim.asr_base < 0.05
    assert victim.implanted
