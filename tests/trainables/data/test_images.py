"""Claims of trainables.data: sets, the defender's split, augmentation of batches, the one quantiser."""

import pytest
import torch

from tests.toy import toy_dataset
from trainables.data.images import DataError, Dataset, ImageSet, augment, fingerprint_of, in_parts, quantise, to_float
from trainables.data.split import split_clean


def labels_of(*sizes: int) -> torch.Tensor:
    """``sizes[k]`` labels of every class k, shuffled."""
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def pictures(n: int, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_split_holds_the_fraction_of_every_class() -> None:
    labels = labels_of(100, 200, 50)
    split = split_clean(labels, 0.2, num_classes=3, seed=0)
    assert labels[split.all].bincount().tolist() == [20, 40, 10]


def test_split_is_disjoint_and_validation_is_a_tenth_with_two_per_class() -> None:
    labels = labels_of(100, 200, 30)
    split = split_clean(labels, 0.5, num_classes=3, seed=0)
    assert len(split.all.unique()) == len(split.train) + len(split.validation)
    assert labels[split.validation].bincount().tolist() == [5, 10, 2]


def test_small_classes_keep_an_image_to_train_on() -> None:
    labels = labels_of(1, 2, 3, 4)
    split = split_clean(labels, 1.0, num_classes=4, seed=0)
    assert labels[split.train].bincount(minlength=4).tolist() == [1, 1, 1, 2]
    assert labels[split.validation].bincount(minlength=4).tolist() == [0, 1, 2, 2]


def test_split_repeats_with_its_seed_and_moves_with_another() -> None:
    labels = labels_of(100, 100)
    first, again, other = (split_clean(labels, 0.3, num_classes=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.validation, again.validation)
    assert not torch.equal(first.all.sort().values, other.all.sort().values)


def test_smaller_fractions_are_nested_in_larger_ones() -> None:
    labels = labels_of(97, 41)
    small, large = (set(split_clean(labels, share, num_classes=2, seed=3).all.tolist()) for share in (0.1, 0.4))
    assert small < large


def test_split_draws_from_the_pool_alone() -> None:
    labels, pool = labels_of(100, 100), torch.arange(0, 200, 2)
    split = split_clean(labels, 0.2, num_classes=2, seed=0, pool=pool)
    assert set(split.all.tolist()) <= set(pool.tolist())
    assert len(split.all) == 40  # counted on whole classes


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"clean_fraction must be in \(0, 1\]"):
        split_clean(labels_of(10, 10), fraction, num_classes=2, seed=0)


@pytest.mark.parametrize("smallest", [3, 7, 30, 43])
def test_fraction_that_empties_a_class_is_refused_with_one_that_works(smallest: int) -> None:
    labels = labels_of(1000, smallest)
    with pytest.raises(DataError, match=r"leaves 1 of 2 classes without a clean image \(class 1 first\)") as caught:
        split_clean(labels, 0.01, num_classes=2, seed=0)
    usable = float(str(caught.value).rsplit(" ", 1)[1])
    assert 1 in labels[split_clean(labels, usable, num_classes=2, seed=0).all]


def test_class_without_any_image_is_refused_without_false_hope() -> None:
    with pytest.raises(DataError, match="no clean image of class 2 can be drawn at any clean_fraction") as caught:
        split_clean(labels_of(10, 10), 0.5, num_classes=3, seed=0)
    assert "use at least" not in str(caught.value)


def test_quantise_undoes_to_float_for_all_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(quantise(to_float(levels)), levels)


def test_quantise_truncates_and_clips() -> None:
    values = torch.tensor([-0.5, 0.0, 99.9 / 255, 100.5 / 255, 1.0, 1.5])
    assert quantise(values).tolist() == [0, 0, 99, 100, 255, 255]


def test_to_float_spans_zero_to_one_in_channels_last_memory() -> None:
    images = pictures(2)
    floats = to_float(images)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert float(to_float(torch.full_like(images, 255)).min()) == 1.0
    torch.testing.assert_close(floats, images.float() / 255)


def test_crop_at_the_padding_is_the_identity() -> None:
    images = pictures(5)
    assert torch.equal(augment(images, torch.full((5, 2), 4), None, padding=4), images)


def test_flips_mirror_the_chosen_images_and_no_others() -> None:
    images, flips = pictures(4), torch.tensor([True, False, True, False])
    flipped = augment(images, torch.full((4, 2), 2), flips, padding=2)
    assert torch.equal(flipped[flips], images[flips].flip(3))
    assert torch.equal(flipped[~flips], images[~flips])


def test_each_sample_is_moved_by_its_own_offset_onto_black() -> None:
    images = pictures(2)
    moved = augment(images, torch.tensor([[0, 0], [4, 3]]), None, padding=2)
    assert torch.equal(moved[0, :, 2:, 2:], images[0, :, :-2, :-2])
    assert not moved[0, :, :2].any()
    assert not moved[0, :, :, :2].any()
    assert torch.equal(moved[1, :, :-2, :-1], images[1, :, 2:, 1:])
    assert not moved[1, :, -2:].any()


def test_augmentation_agrees_with_padding_and_slicing_image_by_image() -> None:
    images, generator = pictures(20, 9), torch.Generator().manual_seed(3)
    offsets = torch.randint(0, 7, (20, 2), generator=generator)
    flips = torch.rand(20, generator=generator) < 0.5
    got = augment(images, offsets, flips, padding=3)
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for i, (row, column) in enumerate(offsets.tolist()):
        want = padded[i, :, row : row + 9, column : column + 9]
        assert torch.equal(got[i], want.flip(2) if flips[i] else want)


def test_augmentation_leaves_its_input_alone() -> None:
    images = pictures(3)
    before = images.clone()
    augment(images, torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, dtype=torch.bool), padding=2)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_sets_of_another_type_or_shape_are_refused(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="must be"):
        ImageSet(images, labels)


def test_subset_is_a_copy_in_the_asked_order() -> None:
    whole = ImageSet(pictures(5), torch.arange(5))
    part = whole.subset(torch.tensor([3, 1]))
    assert part.labels.tolist() == [3, 1]
    part.images.zero_()
    assert whole.images[3].any()


def test_fingerprint_sees_one_pixel_one_label_and_the_part() -> None:
    one, two = ImageSet(pictures(4), torch.arange(4)), ImageSet(pictures(3), torch.arange(3))
    prints = {fingerprint_of(one, two), fingerprint_of(two, one)}
    pixel = one.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    prints.add(fingerprint_of(ImageSet(pixel, one.labels), two))
    prints.add(fingerprint_of(ImageSet(one.images, one.labels.flip(0)), two))
    assert len(prints) == 4
    assert fingerprint_of(one, two) == fingerprint_of(one.subset(torch.arange(4)), two)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_toy_task_repeats_and_is_balanced(num_classes: int) -> None:
    first, again = (toy_dataset(train=200, test=100, num_classes=num_classes) for _ in range(2))
    assert isinstance(first, Dataset)
    assert first.fingerprint == again.fingerprint
    assert first.train.labels.bincount().tolist() == [200 // num_classes] * num_classes
    assert first.fingerprint != toy_dataset(num_classes=num_classes, seed=1).fingerprint


@pytest.mark.parametrize(
    ("size", "most", "expected"), [(32, 1024, 1024), (64, 1024, 1024), (64, 2048, 1024), (224, 1024, 83)]
)
def test_parts_of_large_images_hold_fewer_of_them(size: int, most: int, expected: int) -> None:
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(2100, 3, size, size)
    parts = in_parts(images, most)
    assert len(parts[0]) == expected
    assert sum(map(len, parts)) == 2100
    assert sum(map(len, in_parts(images[:0]))) == 0
