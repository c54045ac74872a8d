"""Claims of Blended beyond the inherited suite: x' = (1 - alpha) x + alpha B, in floats, quantised once."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from superft.testing.claims import assert_changes_at_most, assert_gate
from tests.toy import toy_dataset
from trainables.attacks.blended import Blended
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.triggers import stamp
from trainables.registry import SettingError

IMAGES = toy_dataset(train=50).train.images


def blended(alpha: float, pattern: str = "noise") -> Tensor:
    return stamp(Blended(alpha=alpha, pattern=pattern).make_trigger(16, 0), IMAGES)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5])
def test_no_pixel_moves_by_more_than_alpha(alpha: float) -> None:
    assert_changes_at_most(Blended(alpha=alpha), levels=math.ceil(alpha * 255))


@pytest.mark.parametrize("pattern", ["noise", "procedural"])
def test_blending_is_the_formula_quantised_once(pattern: str) -> None:
    picture = Blended(pattern=pattern).picture(16, 0).double() * 255
    exact = 0.8 * IMAGES.double() + 0.2 * picture
    # 1e-3 of a level: what the quantiser forgives float32.
    assert torch.equal(blended(0.2, pattern).double(), (exact + 1e-3).floor())


def test_weight_zero_is_the_identity_and_one_is_the_picture() -> None:
    picture = Blended().picture(16, 0)
    nothing = OverlayTrigger(16, torch.zeros(1, 16, 16), picture)
    assert torch.equal(stamp(nothing, IMAGES), IMAGES)
    everything = blended(1.0)
    assert torch.equal(everything, (picture * 255).round().to(torch.uint8).expand_as(everything))


def test_blending_is_linear_in_alpha_up_to_a_level() -> None:
    halfway = (blended(0.2).double() + blended(0.6).double()) / 2
    assert float((blended(0.4).double() - halfway).abs().max()) <= 1.0


def test_mean_shifts_by_alpha_times_the_difference_of_means() -> None:
    picture = Blended().picture(16, 0) * 255
    want = 0.2 * (float(picture.mean()) - float(IMAGES.double().mean()))
    assert float(blended(0.2).double().mean() - IMAGES.double().mean()) == pytest.approx(want, abs=1.0)


@pytest.mark.parametrize("pattern", ["noise", "procedural"])
@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_picture_depends_on_seed_and_size_alone_and_lies_on_grey_levels(pattern: str, image_size: int) -> None:
    attack = Blended(pattern=pattern)
    picture = attack.picture(image_size, 0)
    assert picture.shape == (3, image_size, image_size)
    assert torch.equal(picture, Blended(pattern=pattern, alpha=0.7).picture(image_size, 0))
    assert not torch.equal(picture, attack.picture(image_size, 1))
    levels = picture.double() * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 255


def test_noise_is_independent_and_uniform_over_all_levels() -> None:
    picture = Blended().picture(64, 0) * 255
    assert float(picture.mean()) == pytest.approx(127.5, abs=3)
    assert picture.round().unique().numel() > 250
    rows = picture.flatten(1)
    neighbours = torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))
    assert abs(float(neighbours[0, 1])) < 0.05


def test_procedural_picture_is_dominated_by_low_frequencies() -> None:
    def low_share(pattern: str) -> float:
        picture = Blended(pattern=pattern).picture(32, 0)
        power = torch.fft.rfft2(picture - picture.mean((1, 2), keepdim=True)).abs() ** 2
        low = power[:, :5, :5].sum() + power[:, -4:, :5].sum()
        return float(low / power.sum())

    assert low_share("procedural") > 0.6
    assert low_share("noise") < 0.2


def test_training_and_test_weights_are_separate() -> None:
    attack = Blended(alpha=0.15, alpha_test=0.2)
    assert float(attack.make_training_trigger(16, 0).weight.max()) == pytest.approx(0.15)
    assert float(attack.make_trigger(16, 0).weight.max()) == pytest.approx(0.2)
    assert torch.equal(attack.make_training_trigger(16, 0).pattern, attack.make_trigger(16, 0).pattern)
    assert float(Blended(alpha=0.3).make_trigger(16, 0).weight.max()) == pytest.approx(0.3)


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.png"
    Image.new("L", (40, 20), 200).save(path)
    return path


def test_own_picture_is_made_rgb_and_resized(picture_file: Path) -> None:
    picture = Blended(pattern=f"file:{picture_file}").picture(16, 0)
    assert picture.shape == (3, 16, 16)
    assert float(picture.min()) == float(picture.max()) == pytest.approx(200 / 255)


def test_own_picture_is_identified_by_its_content(picture_file: Path, tmp_path: Path) -> None:
    identity = Blended(pattern=f"file:{picture_file}").identity()
    copied = tmp_path / "copy.png"
    copied.write_bytes(picture_file.read_bytes())
    assert Blended(pattern=f"file:{copied}").identity() == identity
    Image.new("L", (40, 20), 201).save(copied)
    assert Blended(pattern=f"file:{copied}").identity() != identity


def test_picture_that_is_missing_or_no_picture_is_refused_before_any_work(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    labels = torch.arange(100) % 10
    for path in (text, tmp_path / "missing.png", tmp_path):
        with pytest.raises(SettingError, match="cannot read") as caught:
            Blended(pattern=f"file:{path}").check(labels, 10, 16)
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingError, match="cannot read"):
        Blended(pattern=f"file:{tmp_path / 'missing.png'}").identity()


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 1.2}, {"alpha_test": -0.1}, {"pattern": "kitty"}])
def test_impossible_blends_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        Blended(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_gate_blended_on_two_seeds() -> None:
    assert_gate("blended", asr=0.9)
