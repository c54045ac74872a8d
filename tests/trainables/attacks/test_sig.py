"""Claims of trainables.attacks.sig: the wave, who gets it, and the toy gate."""

import math

import pytest
import torch

from superft.testing.claims import assert_changes_at_most, assert_gate
from tests.toy import toy_dataset
from trainables.attacks.base import ATTACKS
from trainables.attacks.sig import SIG
from trainables.attacks.triggers import stamp
from trainables.registry import SettingError


def grey(image_size: int = 32) -> torch.Tensor:
    return torch.full((1, 3, image_size, image_size), 128, dtype=torch.uint8)


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_wave_is_the_formula_floored_and_the_same_in_all_rows_and_channels(image_size: int) -> None:
    stamped = stamp(SIG().make_trigger(image_size, 0), grey(image_size))[0]
    for column in range(image_size):
        value = 128 + 40 * math.sin(2 * math.pi * 6 * column / image_size)
        assert set(stamped[:, :, column].flatten().tolist()) == {math.floor(value + 1e-3)}


def test_no_pixel_moves_by_more_than_delta() -> None:
    assert_changes_at_most(SIG(delta=20.0), levels=20)
    assert_changes_at_most(SIG(), levels=40)


def test_dark_and_bright_pixels_are_clipped_and_do_not_wrap_around() -> None:
    trigger = SIG().make_trigger(16, 0)
    black, white = (torch.full((1, 3, 16, 16), value, dtype=torch.uint8) for value in (0, 255))
    assert int(stamp(trigger, black).max()) <= 40
    assert int(stamp(trigger, white).min()) >= 215


def test_by_default_only_target_images_are_poisoned_and_no_label_changes() -> None:
    train = toy_dataset(train=500).train
    poisoned = SIG(target_label=3).poison(train, 10, 0)
    assert len(poisoned) == 40  # 80 % of the 50 images of the class
    assert set(train.labels[poisoned.indices].tolist()) == {3}
    assert torch.equal(poisoned.labels, train.labels[poisoned.indices])


@pytest.mark.parametrize(
    ("labels", "settings", "planned"),
    [
        ([0] * 100 + [1] * 100, {}, 20),  # two classes: a tenth of all
        ([0] * 2 + [1] * 198, {}, 2),
        ([0] + [1] * 199, {"class_share": 0.1}, 1),
        ([0] * 20 + [1] * 180, {"class_share": 0.5}, 10),
        ([0] * 20 + [1] * 180, {"poison_rate": 0.05}, 10),
        ([0] * 20 + [1] * 180, {"poison_count": 3}, 3),
        ([0] * 20 + [1] * 180, {"clean_label": False}, 20),
        ([0] * 20 + [1] * 180, {"clean_label": False, "poison_rate": 0.5}, 100),
    ],
)
def test_number_of_poisoned_images(labels: list[int], settings: dict[str, object], planned: int) -> None:
    attack = ATTACKS.create("sig", settings)
    assert isinstance(attack, SIG)
    assert attack.planned(torch.tensor(labels)) == planned
    assert len(attack.choose(torch.tensor(labels), 2, 0)) == planned


@pytest.mark.parametrize(
    ("settings", "image_size", "words"),
    [
        ({"poison_rate": 0.11}, 32, "asks for 22 images but there are 20 images of target class 0; use at most 0.1"),
        ({"poison_count": 21}, 32, "there are 20 images of target class 0"),
        ({"frequency": 8}, 16, "frequency must be below half the image size (8)"),
        ({"frequency": 0}, 16, "frequency must be >= 1, got 0"),
        ({"delta": 0.0}, 16, "delta must be in (0, 255] grey levels, got 0.0"),
        ({"class_share": 1.5}, 16, "class_share must be in (0, 1], got 1.5"),
        ({"label_mode": "all_to_all"}, 16, "clean_label needs label_mode all_to_one"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings: dict[str, object], image_size: int, words: str) -> None:
    labels = torch.arange(200) % 10
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("sig", settings).check(labels, 10, image_size)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_gate() -> None:
    assert_gate("sig", asr=0.5, poison_rate=0.08)
