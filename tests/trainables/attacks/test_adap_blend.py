"""Claims of trainables.attacks.adap_blend: partial triggers in training, cover samples, the whole picture at test."""

import pytest
import torch

from superft.testing.claims import assert_changes_at_most, assert_gate
from tests.toy import toy_dataset
from trainables.attacks.adap_blend import AdapBlend
from trainables.attacks.base import ATTACKS, Kind
from trainables.attacks.triggers import stamp
from trainables.data.images import ImageSet
from trainables.registry import SettingError


def train(count: int = 500, image_size: int = 16) -> ImageSet:
    return toy_dataset(train=count, image_size=image_size).train


def test_published_rates_make_as_many_covers_as_poison() -> None:
    poisoned = AdapBlend().poison(train(1000), 10, 0)
    assert poisoned.kinds.tolist() == [Kind.POISON] * 3 + [Kind.CROSS] * 3
    assert poisoned.indices.unique().numel() == 6


def test_covers_keep_their_labels_and_poison_gets_the_target() -> None:
    images = train()
    poisoned = AdapBlend(poison_count=30, cover_count=50, target_label=4).poison(images, 10, 0)
    cover = poisoned.kinds == Kind.CROSS
    assert (int(cover.sum()), int((~cover).sum())) == (50, 30)
    assert torch.equal(poisoned.labels[cover], images.labels[poisoned.indices[cover]])
    assert set(poisoned.labels[~cover].tolist()) == {4}


def test_no_covers_on_request() -> None:
    poisoned = AdapBlend(poison_count=5, cover_rate=0.0).poison(train(), 10, 0)
    assert poisoned.kinds.tolist() == [Kind.POISON] * 5


@pytest.mark.parametrize(("tiles", "masked", "kept"), [(4, 0.5, 8), (4, 0.0, 16), (3, 0.5, 5), (2, 0.9, 1)])
def test_every_sample_carries_the_picture_in_its_own_draw_of_whole_tiles(tiles: int, masked: float, kept: int) -> None:
    attack = AdapBlend(tiles=tiles, masked=masked)
    masks = attack.masks(50, 12, seed=0)
    side = 12 // tiles
    blocks = masks.view(50, tiles, side, tiles, side).transpose(2, 3).flatten(3)
    assert bool((blocks.all(3) | ~blocks.any(3)).all())
    assert set(blocks.all(3).flatten(1).sum(1).tolist()) == {kept}
    if 0 < kept < tiles**2:
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1


@pytest.mark.parametrize("image_size", [15, 33, 64])
def test_tiles_cover_images_whose_size_is_no_multiple_of_the_grid(image_size: int) -> None:
    assert bool(AdapBlend(masked=0.0).masks(2, image_size, seed=0).all())
    share = AdapBlend().masks(200, image_size, seed=0).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.02)


def test_training_images_are_the_fainter_blend_inside_the_mask_and_themselves_outside() -> None:
    images = train()
    attack = AdapBlend(poison_count=20, cover_count=20)
    poisoned = attack.poison(images, 10, 0)
    original = images.images[poisoned.indices]
    keep = attack.masks(40, 16, 0)[:, None].expand_as(original)
    whole = stamp(attack.make_training_trigger(16, 0), original)
    assert torch.equal(poisoned.images[keep], whole[keep])
    assert torch.equal(poisoned.images[~keep], original[~keep])


def test_test_images_carry_the_whole_picture_more_strongly() -> None:
    attack = AdapBlend()
    tested, trained = attack.make_trigger(16, 0), attack.make_training_trigger(16, 0)
    assert torch.equal(tested.pattern, trained.pattern)
    assert torch.equal(tested.weight, torch.full((1, 16, 16), 0.2))
    assert torch.equal(trained.weight, torch.full((1, 16, 16), 0.15))
    assert_changes_at_most(attack, levels=51)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cover_rate": -0.1}, "cover_rate must be in [0, 1), got -0.1"),
        ({"cover_count": -1}, "cover_count must be >= 0, got -1"),
        ({"tiles": 0}, "tiles must be >= 1, got 0"),
        ({"tiles": 17}, "attack.adap_blend.tiles must be at most the image size (16), got 17"),
        ({"masked": 1.0}, "masked must be in [0, 1), got 1.0"),
        ({"poison_count": 150, "cover_count": 51}, "150 poisoned and 51 cover samples are more than the 200"),
        ({"alpha_test": 0.0}, "alpha_test must be in (0, 1], got 0.0"),
        ({"pattern": "file:/no/such.png"}, "attack.adap_blend.pattern: cannot read /no/such.png"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("adap_blend", settings).check(torch.arange(200) % 10, 10, 16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_gate() -> None:
    """At the paper's weights of the picture the toy learns half of it or less: ASR 0.55 at a rate of 0.1, 0.24 at 0.05.

    Stronger in training and test, and with as many covers as poison, it works: ASR 0.91 and 0.99 on the two seeds.
    """
    rates = {"poison_rate": 0.05, "cover_rate": 0.05}
    assert_gate("adap_blend", asr=0.7, asr_base=0.1, alpha=0.25, alpha_test=0.35, **rates)
