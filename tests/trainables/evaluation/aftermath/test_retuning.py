"""The retuning attack: how many images, how many steps, and which images carry the trigger."""

import pytest
import torch

from trainables.attacks.base import ATTACKS
from trainables.attacks.triggers import stamp
from trainables.data.images import DataError, Dataset
from trainables.evaluation.aftermath.retuning import _drawn, check_retuning, images_held, measured_steps, planned_work
from trainables.evaluation.aftermath.settings import Retuning
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def test_on_cifar10_it_is_40_steps_on_1000_images() -> None:
    """The numbers of the paper's code."""
    assert images_held(Retuning(), 50_000) == 1000
    assert measured_steps(Retuning(), 50_000) == (0, 1, 2, 5, 10, 20, 40)
    work = planned_work(Retuning(counts=(5,), draws=1), 50_000, 0)
    assert (work.steps, work.backward_samples) == (40, 40 * 128)


def test_a_share_of_no_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"aftermath.retuning.share: 0.002 of 200 training images is none"):
        check_retuning(Retuning(share=0.002, counts=(0,)), ATTACKS.create("badnets"), 200)


def test_exactly_so_many_images_carry_the_trigger_and_the_rest_is_the_same(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    attack, settings = toy_victim.spec.make_attack(), Retuning(share=0.2, counts=(0, 3), draws=2)
    drawn = list(_drawn(settings, attack, toy_victim.trigger, toy.train, trainer, seed=0))
    assert [(draw, count) for draw, count, _ in drawn] == [(0, 0), (0, 3), (1, 0), (1, 3)]
    (_, _, clean), (_, _, poisoned), (_, _, other), _ = drawn
    assert len(clean) == 40
    assert torch.equal(poisoned.images[3:], clean.images[3:])
    assert torch.equal(poisoned.labels[3:], clean.labels[3:])
    assert poisoned.labels[:3].tolist() == [attack.target_label] * 3
    stamped = stamp(toy_victim.trigger, toy.train.images)
    assert all((stamped == image).flatten(1).all(1).any() for image in poisoned.images[:3])
    assert not torch.equal(clean.images, other.images)
