"""What `movement` is documented to see: nothing where nothing happened, and exact distances where something did."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from trainables.defenses.base import DEFENSES
from trainables.training.movement import (
    DISPLACEMENT_SHARE,
    LOSS_RISE,
    THE_SAME,
    Movement,
    Snapshot,
    loss_rise,
    movement,
)


def line(*values: float) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    return layer


def test_the_rise_is_of_the_highest_mean_of_five_over_the_first_batch() -> None:
    assert loss_rise([0.1, 0.1, 0.1, 0.1, 0.1, 1.1, 0.1]) == pytest.approx(0.2)
    assert loss_rise([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]) == pytest.approx(-0.2)
    assert loss_rise([0.5, 0.7]) == pytest.approx(0.1)  # fewer than five steps are one window
    assert loss_rise([]) is None


def test_distances_are_euclidean_and_over_the_length_before() -> None:
    found = movement(Snapshot.of(line(3.0, 4.0)), line(3.0, 5.0), [0.1] * 5)
    assert found.displacement == pytest.approx(1.0)
    assert found.displacement_share == pytest.approx(0.2)
    assert found.changed == 0.5


def test_the_same_weights_have_not_moved_even_if_a_loss_rose() -> None:
    model = line(3.0, 4.0)
    assert movement(Snapshot.of(model), copy.deepcopy(model), [0.0] + [9.0] * 9).moved is False


@pytest.mark.parametrize(
    ("rise", "share", "moved"),
    [
        (LOSS_RISE, THE_SAME, True),
        (LOSS_RISE, THE_SAME / 2, False),
        (LOSS_RISE / 2, DISPLACEMENT_SHARE, True),
        (LOSS_RISE / 2, DISPLACEMENT_SHARE / 2, False),
        (None, DISPLACEMENT_SHARE / 2, False),
    ],
)
def test_a_repair_moved_if_its_loss_rose_or_its_weights_went(rise: float | None, share: float, moved: bool) -> None:
    assert Movement(rise, 1.0, share, changed=1.0).moved is moved


@pytest.mark.parametrize(("rise", "share"), [(0.018, 0.192), (0.015, 0.166), (0.006, 0.197)])
def test_a_long_low_ramp_that_removed_a_backdoor_moved(rise: float, share: float) -> None:
    """BadNets and Blended on digits, super-FT to a peak of 0.03: ASR 0.000 after each."""
    assert Movement(rise, 1.0, share, changed=1.0).moved is True


def test_a_loss_of_its_own_that_never_rose_says_nothing() -> None:
    """Neural Cleanse's unlearning on digits: ASR 0.000 with a loss that fell by 0.18, at 0.095 of the length."""
    unlearned = Movement(-0.18, 1.0, 0.095, changed=1.0, plain_loss=False)
    assert unlearned.moved is None
    assert dataclasses.replace(unlearned, plain_loss=True).moved is False
    assert dataclasses.replace(unlearned, displacement_share=THE_SAME / 2).moved is False
    assert dataclasses.replace(unlearned, loss_rise=1.0).moved is True


def test_which_methods_train_on_owned_images_alone() -> None:
    plain = {name for name in DEFENSES.names() if DEFENSES.get(name).plain_loss}
    assert plain == {"ft", "super_ft", "scratch"}


def test_a_pruned_part_is_not_judged_by_its_distance() -> None:
    assert Movement(None, 0.01, 0.01, changed=0.1).moved is None


def test_renewed_statistics_alone_are_an_edit_of_a_part() -> None:
    norm = nn.BatchNorm1d(2)
    before = Snapshot.of(norm)
    norm(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    assert movement(before, norm).moved is None
    assert movement(before, norm, [0.1, 0.1]).moved is False  # a training that went nowhere renews them too


def test_steps_lost_to_rounding_are_no_edit_of_a_part() -> None:
    assert Movement(0.01, 1e-6, 1e-7, changed=0.1).moved is False


def test_a_new_model_of_another_form_is_far_away() -> None:
    found = movement(Snapshot.of(line(3.0, 4.0)), line(6.0, 8.0, 0.0))
    assert found.displacement == pytest.approx(math.hypot(5.0, 10.0))
    assert found.moved
