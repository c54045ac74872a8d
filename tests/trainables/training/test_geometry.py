"""Claims of trainables.training.geometry: what moves, for whom, and what a rotation does to a warp."""

import pytest
import torch
from torch import Tensor

from tests.toy import toy_dataset
from trainables.attacks.wanet import WaNet
from trainables.data.images import to_float
from trainables.training.geometry import Draws, Moves


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, image_size: int = 16) -> Tensor:
    return to_float(toy_dataset(train=max(count, 20), image_size=image_size).train.images[:count])


def crops_found(moves: Moves, image: Tensor, tries: int) -> tuple[set[tuple[bool, int, int]], int]:
    """(mirrored, down, right) of the crops that ``moves`` made of an image of 16 pixels, and how often it made none."""
    found, others = set(), 0
    padded = torch.zeros(1, 3, 20, 20)
    padded[..., 2:18, 2:18] = image
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    for seed in range(tries):
        made = moves(image, True, stream(seed))
        fits = set()
        for down, right in shifts:
            cropped = padded[..., 2 + down : 18 + down, 2 + right : 18 + right]
            fits |= {(m, down, right) for m in (False, True) if torch.equal(made, cropped.flip(-1) if m else cropped)}
        found |= fits
        others += not fits
    return found, others


def test_draws_are_for_every_sample_or_once_for_the_batch_or_none() -> None:
    images = pictures(1).expand(24, -1, -1, -1)
    each = Moves("sample")(images, True, stream())
    assert len({tuple(image.flatten().tolist()) for image in each}) > 12
    together = Moves("batch")(images, True, stream(1))
    assert torch.equal(together, together[:1].expand_as(together))
    assert not torch.equal(together, images)
    assert torch.equal(Moves("none")(images, True, stream()), images)


def test_crop_moves_by_whole_pixels_and_flip_mirrors_and_half_of_the_draws_rotate() -> None:
    found, others = crops_found(Moves("sample"), pictures(1), tries=300)
    assert len(found) > 40, "not all of 25 crops, each with and without a flip"
    assert 60 < others < 150  # rotations by two or three degrees move no pixel of 16 by nearest resampling


def test_without_rotation_every_draw_is_a_crop_of_whole_pixels() -> None:
    assert crops_found(Moves("crop"), pictures(1), tries=60)[1] == 0


def test_data_sets_whose_labels_a_flip_changes_are_not_flipped() -> None:
    image = torch.zeros(200, 3, 16, 16)
    image[..., :8] = 1.0
    made = Moves()(image, False, stream())
    assert float((made[..., :4].mean((1, 2, 3)) - made[..., -4:].mean((1, 2, 3))).min()) > 0


def test_nearest_makes_no_colour_that_was_not_there_and_bilinear_does() -> None:
    images = (pictures(40) > 0.5).float()
    assert Moves("sample", "nearest")(images, True, stream()).unique().tolist() == [0.0, 1.0]
    assert len(Moves("sample", "bilinear")(images, True, stream()).unique()) > 100


@pytest.mark.parametrize("draws", ["sample", "batch"])
def test_rotation_in_bilinear_resampling_blurs_more_than_the_warp_moves(draws: Draws) -> None:
    """On 32-pixel pictures of noise, where a warp shows: what rotation alone does to the contrast of neighbours."""
    noise = torch.rand(64, 3, 32, 32, generator=stream(1))

    def contrast(images: Tensor) -> float:
        middle = images[..., 8:24, 8:24]  # away from the black that comes in
        return float((middle[..., 1:] - middle[..., :-1]).abs().mean())

    def after(resampling: str) -> float:
        made = [Moves(draws, resampling)(noise, False, stream(seed)) for seed in range(12)]  # type: ignore[arg-type]
        return sum(map(contrast, made)) / len(made)

    plain = contrast(noise)
    assert after("nearest") == pytest.approx(plain, rel=0.05)
    assert after("bilinear") < 0.9 * plain
    assert contrast(WaNet().make_trigger(32, 0)(noise)) < 0.9 * plain  # the warp itself is such a blur
