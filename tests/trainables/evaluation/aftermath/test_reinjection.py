"""Re-injection: what is poisoned, when it is measured, and what the curve says."""

import copy
from typing import Any

import pytest
import torch

from superft.testing.toy_victims import accurate_model
from tests.toy import toy_spec
from trainables.attacks.base import ATTACKS
from trainables.attacks.triggers import stamp
from trainables.data.images import DataError, Dataset
from trainables.evaluation.aftermath.reinjection import (
    Curve,
    _poisoned,
    check_reinjection,
    measured_steps,
    planned_arms,
    reinject,
    without_poisoned_data,
)
from trainables.evaluation.aftermath.settings import Arm, Reinjection
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

ARM = Arm("5 images", None, 5, 0.01)
LABELS = torch.arange(200) % 10


def test_summary_of_a_known_curve() -> None:
    curve = Curve(ARM, 5, (0, 2, 4), (0.0, 0.5, 1.0), (0.9, 0.9, 0.9), 4)
    assert (curve.steps_to(0.5), curve.steps_to(0.9), curve.area) == (2, 4, 0.5)
    stays = Curve(ARM, 5, (0, 4), (0.1, 0.1), (0.9, 0.9), 4)
    assert (stays.steps_to(0.5), stays.area) == (None, pytest.approx(0.1))


def test_it_is_measured_at_step_0_within_the_first_epoch_and_after_each() -> None:
    settings = Reinjection(epochs=3, batch_size=10)
    assert measured_steps(settings, 70) == (0, 1, 2, 5, 7, 14, 21)
    assert measured_steps(Reinjection(epochs=0.5, batch_size=10), 70) == (0, 1, 2, 4)
    cifar = measured_steps(Reinjection(), 50_000)
    assert cifar[:11] == (0, 1, 2, 5, 10, 20, 40, 50, 100, 196, 392)
    assert (cifar[-1], len(cifar)) == (50 * 196, 59)


def test_amounts_that_come_to_the_same_are_tried_once() -> None:
    settings = Reinjection(rates=("original", 0.1, 0.05), counts=(10,), lrs=(0.001, 0.01))
    arms = planned_arms(settings, ATTACKS.create("badnets"), LABELS)
    assert [(arm.name, arm.lr) for arm in arms] == [
        *(("original rate", 0.001), ("original rate", 0.01)),
        *(("rate 0.05", 0.001), ("rate 0.05", 0.01)),
    ]


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        ("clean", {}, "attack clean has no trigger"),
        ("badnets", {"counts": (181,)}, "counts: 181 asks for 181 images, and attack badnets may poison 180 of 200"),
        ("badnets", {"rates": (0.001,)}, "rates: 0.001 selects no image of 200; use at least 0.005"),
    ],
)
def test_what_cannot_be_re_injected_is_refused(attack: str, settings: dict[str, Any], message: str) -> None:
    asked = Reinjection(**{"rates": ("original",), "counts": (5,), **settings})
    with pytest.raises(DataError, match=message):
        check_reinjection(asked, ATTACKS.create(attack), LABELS, 10)


def test_an_attack_without_poisoned_data_says_how_it_is_re_injected() -> None:
    assert "handcrafted releases no poisoned data" in without_poisoned_data(ATTACKS.create("handcrafted"))
    assert without_poisoned_data(ATTACKS.create("badnets")) == ""


def test_exactly_the_chosen_images_carry_the_stored_trigger(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    poison = torch.tensor([3, 50, 121])
    attack = toy_victim.spec.make_attack()
    data, transform, augmented = _poisoned(attack, toy_victim.trigger, poison, toy.train, trainer, ARM)
    changed = (data.images != toy.train.images).flatten(1).any(1).nonzero()[:, 0]
    assert torch.equal(changed, poison)
    assert torch.equal(data.images[poison], stamp(toy_victim.trigger, toy.train.images[poison]))
    assert data.labels[poison].tolist() == [attack.target_label] * 3
    assert (transform, augmented) == (None, True)


def test_attacks_that_stamp_in_the_loop_stamp_the_same_images_there(toy: Dataset, trainer: Trainer) -> None:
    attack = ATTACKS.create("wanet")
    trigger = attack.preview_trigger(toy.image_size, 0)
    assert trigger is not None
    poison = torch.tensor([1, 4])
    data, transform, augmented = _poisoned(attack, trigger, poison, toy.train, trainer, ARM)
    assert transform is not None
    assert not augmented  # WaNet's own victims are trained without crops: a moved warp is another one
    images = toy.train.images[:6].float() / 255
    made, wanted = transform(images, data.labels[:6])
    assert ((made - images).flatten(1).abs().amax(1) > 0).nonzero()[:, 0].tolist() == [1, 4]
    assert torch.equal(made[[1, 4]], trigger(images[[1, 4]]))
    expected = toy.train.labels[:6].clone()
    expected[[1, 4]] = attack.target_label
    assert torch.equal(wanted, expected)


@pytest.mark.parametrize("name", ["imc", "latent", "sbl"])
def test_who_stamped_after_the_crop_stamps_after_the_crop(
    name: str, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    attack = ATTACKS.create(name)
    poison = torch.tensor([1, 4])
    data, transform, augmented = _poisoned(attack, toy_victim.trigger, poison, toy.train, trainer, ARM)
    assert augmented
    assert transform is not None
    assert torch.equal(data.images, toy.train.images), "nothing is stamped beforehand"
    cropped = toy.train.images[:6].float().roll(3, dims=-1) / 255
    made, _ = transform(cropped, data.labels[:6])
    assert torch.equal(made[[1, 4]], toy_victim.trigger(cropped[[1, 4]]))


def test_a_clean_model_learns_the_backdoor_from_much_poison_and_not_from_none(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    model = accurate_model()
    before = copy.deepcopy(model.state_dict())
    settings = Reinjection(rates=(0.5,), counts=(0,), lrs=(0.1,), epochs=12, batch_size=20)
    much, none = reinject(
        settings,
        model,
        attack=toy_victim.spec.make_attack(),
        trigger=toy_victim.trigger,
        train=toy.train,
        test=toy.test,
        triggered=toy_victim.triggered,
        trainer=trainer,
        seed=0,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (much.poisoned, none.poisoned) == (100, 0)
    assert much.asr[0] == none.asr[0]
    # 45 triggered images are judged; the poison is half of the training set.
    assert much.asr[-1] > none.asr[-1] + 0.3
    assert much.steps[-1] == trainer.counters.steps / 2 == 120
    assert toy_spec("badnets").attack == toy_victim.spec.attack
