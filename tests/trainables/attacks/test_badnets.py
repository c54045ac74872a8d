"""Claims of BadNets beyond the inherited suite: nine white pixels in a corner, and nothing else."""

import pytest
import torch
from torch import Tensor

from superft.testing.claims import assert_changes_at_most, assert_gate
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.badnets import BadNets
from trainables.attacks.triggers import stamp
from trainables.registry import SettingError

GREY = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)


def changed(attack: BadNets, image: Tensor = GREY) -> Tensor:
    """Mask (H, W) of the pixels that the trigger changes."""
    stamped = stamp(attack.make_trigger(image.shape[-1], 0), image)
    return (stamped != image).any(1)[0]


def block(row: int, column: int, size: int = 3, image_size: int = 32) -> Tensor:
    mask = torch.zeros(image_size, image_size, dtype=torch.bool)
    mask[row : row + size, column : column + size] = True
    return mask


def test_badnets_changes_only_nine_pixels_in_the_bottom_right_corner_and_makes_them_white() -> None:
    stamped = stamp(BadNets().make_trigger(32, 0), GREY)
    assert torch.equal(changed(BadNets()), block(29, 29))
    assert int(changed(BadNets()).sum()) == 9
    assert stamped[:, :, 29:, 29:].unique().tolist() == [255]


@pytest.mark.parametrize(("image_size", "side"), [(16, 3), (32, 3), (48, 4), (64, 6), (224, 21)])
def test_patch_grows_with_larger_images_as_the_public_picture_does(image_size: int, side: int) -> None:
    grey = torch.full((1, 3, image_size, image_size), 128, dtype=torch.uint8)
    place = image_size - side
    assert torch.equal(changed(BadNets(), grey), block(place, place, side, image_size))
    assert torch.equal(changed(BadNets(size=3), grey), block(image_size - 3, image_size - 3, 3, image_size))


def test_the_victims_key_holds_the_side_that_the_patch_has() -> None:
    data, spec = toy_dataset(train=20, image_size=64), toy_spec("badnets")
    assert spec.name(data) == toy_spec("badnets", size=6).name(data) != toy_spec("badnets", size=3).name(data)


@pytest.mark.parametrize(
    ("position", "row", "column"),
    [
        ("bottom_right", 29, 29),
        ("bottom_left", 29, 0),
        ("top_right", 0, 29),
        ("top_left", 0, 0),
        ("centre", 14, 14),
        ("5,7", 5, 7),
    ],
)
def test_patch_is_where_it_was_put(position: str, row: int, column: int) -> None:
    assert torch.equal(changed(BadNets(position=position)), block(row, column))


def test_margin_moves_the_patch_away_from_both_borders() -> None:
    assert torch.equal(changed(BadNets(margin=2)), block(27, 27))
    assert torch.equal(changed(BadNets(margin=2, position="top_right")), block(2, 27))


@pytest.mark.parametrize("pattern", ["white", "checkerboard", "random"])
def test_stamping_twice_is_stamping_once(pattern: str) -> None:
    trigger = BadNets(pattern=pattern, size=4).make_trigger(32, 0)  # type: ignore[arg-type]
    once = stamp(trigger, GREY)
    assert torch.equal(stamp(trigger, once), once)


def test_checkerboard_holds_true_black() -> None:
    stamped = stamp(BadNets(pattern="checkerboard").make_trigger(32, 0), GREY)
    assert stamped[0, 0, 29:, 29:].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]


def test_random_patch_depends_on_the_seed_alone() -> None:
    def patch(seed: int) -> Tensor:
        return stamp(BadNets(pattern="random").make_trigger(32, seed), GREY)[0, :, 29:, 29:]

    assert torch.equal(patch(3), patch(3))
    assert not torch.equal(patch(3), patch(4))
    assert patch(3).unique().numel() > 9  # a colour per pixel, not one grey


def test_opacity_mixes_with_the_image() -> None:
    stamped = stamp(BadNets(alpha=0.5).make_trigger(32, 0), GREY)
    assert int(stamped[0, 0, 31, 31]) == (128 + 255) // 2


def test_bound_holds_on_a_thousand_images() -> None:
    assert_changes_at_most(BadNets(), levels=255, where=block(13, 13, image_size=16))
    assert_changes_at_most(BadNets(alpha=0.1, size=5), levels=26, where=block(11, 11, size=5, image_size=16))


@pytest.mark.parametrize(("n", "planned"), [(200, 20), (205, 20), (215, 22), (1004, 100)])
def test_count_is_the_rounded_share_of_the_whole_set(n: int, planned: int) -> None:
    labels = torch.arange(n) % 10
    chosen = BadNets().choose(labels, 10, seed=0)
    assert len(chosen) == planned == round(0.1 * n)


def test_target_class_is_poisoned_too_unless_excluded() -> None:
    labels = torch.arange(2000) % 10
    assert (labels[BadNets(poison_rate=0.5).choose(labels, 10, seed=0)] == 0).any()
    without = BadNets(poison_rate=0.5, exclude_target=True).choose(labels, 10, seed=0)
    assert not (labels[without] == 0).any()
    assert len(without) == 1000


def test_same_seed_poisons_the_same_images_whatever_the_trigger() -> None:
    labels = torch.arange(500) % 10
    first = BadNets().choose(labels, 10, seed=5)
    assert torch.equal(first, BadNets(size=7, pattern="random").choose(labels, 10, seed=5))
    assert not torch.equal(first, BadNets().choose(labels, 10, seed=6))


def test_all_to_all_shifts_every_label_once_around() -> None:
    attack = BadNets(label_mode="all_to_all", label_shift=3)
    assert attack.targets(torch.arange(5), 5).tolist() == [3, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "image_size"),
    [
        ({"size": 17}, 16),
        ({"size": 8, "margin": 9}, 16),
        ({"position": "15,15"}, 16),
        ({"position": "-1,3"}, 16),
    ],
)
def test_patch_outside_the_image_is_refused(settings: dict[str, int], image_size: int) -> None:
    with pytest.raises(SettingError, match=f"does not fit an image of {image_size} pixels"):
        BadNets(**settings).check(torch.arange(100) % 10, 10, image_size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"margin": -1}, {"alpha": 0.0}, {"alpha": 1.1}, {"pattern": "blue"}, {"position": "middle"}],
)
def test_impossible_patches_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        BadNets(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_gate_badnets_on_two_seeds() -> None:
    assert_gate("badnets", asr=0.85)
