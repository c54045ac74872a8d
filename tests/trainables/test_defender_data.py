"""Claims of trainables.defender_data: a defender's clean images are spoilt as the cell says, and no further."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.toy import toy_spec
from trainables.attacks.base import PoisonedSamples
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.data.load import DataSource
from trainables.defender_data import defender_counts, defender_images, matched
from trainables.defenses.base import DEFENSES, CleanData, PoisonedData
from trainables.job import Cell
from trainables.trial import assets_for, run_trial
from trainables.victims.victim import Victim

CPU = torch.device("cpu")
TARGET = 0


@pytest.fixture
def held(toy: Dataset, toy_victim: Victim) -> Callable[..., ImageSet]:
    """Everything that the defender of a cell holds, training images first."""

    def of(**keys: Any) -> ImageSet:
        train, validation = defender_images(cell_of(toy_victim, **keys), toy, toy_victim)
        return ImageSet(torch.cat([train.images, validation.images]), torch.cat([train.labels, validation.labels]))

    return of


def cell_of(victim: Victim, **keys: Any) -> Cell:
    return Cell(DataSource("toy"), victim.spec, **{"defense": "ft", "clean_fraction": 0.5, **keys})


def changed(one: ImageSet, other: ImageSet) -> torch.Tensor:
    """Which images differ."""
    return (one.images != other.images).flatten(1).any(1)


def test_nothing_wrong_is_what_it_always_was(toy: Dataset, toy_victim: Victim) -> None:
    cell = cell_of(toy_victim)
    split = toy_victim.clean_split(toy, 0.5, "overlap", 0)
    train, validation = defender_images(cell, toy, toy_victim)
    for ours, at in ((train, split.train), (validation, split.validation)):
        assert torch.equal(ours.images, toy.train.images[at])
        assert torch.equal(ours.labels, toy.train.labels[at])
    assert (len(train), len(validation)) == defender_counts(cell, toy)
    assert (cell.columns()["label_noise"], cell.columns()["residual_poison"]) == (0.0, 0.0)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
def test_label_noise_makes_exactly_its_share_of_labels_wrong(held: Callable[..., ImageSet], share: float) -> None:
    clean, noisy = held(), held(label_noise=share)
    assert int((clean.labels != noisy.labels).sum()) == round(share * len(clean))
    assert torch.equal(clean.images, noisy.images)
    assert int(noisy.labels.min()) >= 0
    assert int(noisy.labels.max()) < 10


def test_wrong_labels_lie_in_both_parts_and_in_all_classes(held: Callable[..., ImageSet]) -> None:
    clean, noisy = held(clean_fraction=1.0), held(clean_fraction=1.0, label_noise=0.95)
    wrong = clean.labels != noisy.labels
    assert bool(wrong[-10:].any())
    # Nine wrong classes, each equally likely: 190 draws, about 21 each.
    steps = ((noisy.labels - clean.labels) % 10)[wrong]
    assert steps.bincount(minlength=10)[1:].min() >= 8


def test_residual_poison_carries_the_victims_trigger_and_label(
    held: Callable[..., ImageSet], toy_victim: Victim
) -> None:
    clean, spoilt = held(), held(residual_poison=0.1)
    poisoned = changed(clean, spoilt)
    assert int(poisoned.sum()) == round(0.1 * len(clean))
    assert set(spoilt.labels[poisoned].tolist()) == {TARGET}
    assert TARGET not in clean.labels[poisoned].tolist(), "an image of the target class is no poison"
    assert torch.equal(clean.labels[~poisoned], spoilt.labels[~poisoned])
    stamped = toy_victim.trigger(clean.images[poisoned].float() / 255)
    assert (stamped * 255 - spoilt.images[poisoned].float()).abs().max() <= 1


def test_both_together_spoil_different_images(held: Callable[..., ImageSet]) -> None:
    clean, spoilt = held(), held(residual_poison=0.1, label_noise=0.2)
    poisoned = changed(clean, spoilt)
    wrong = clean.labels != spoilt.labels
    assert (int(poisoned.sum()), int((wrong & ~poisoned).sum())) == (10, 20)


@pytest.mark.parametrize("key", ["label_noise", "residual_poison"])
def test_a_larger_share_spoils_what_a_smaller_one_spoils_and_more(held: Callable[..., ImageSet], key: str) -> None:
    clean, little, much = held(), held(**{key: 0.05}), held(**{key: 0.2})
    spoilt = clean.labels != little.labels
    assert torch.equal(little.labels[spoilt], much.labels[spoilt])
    assert bool((clean.labels != much.labels)[spoilt].all())


@pytest.mark.parametrize("key", ["label_noise", "residual_poison"])
def test_another_seed_spoils_others_and_the_same_seed_the_same(
    toy: Dataset, toy_victim: Victim, key: str, held: Callable[..., ImageSet]
) -> None:
    def spoilt(defense_seed: int) -> set[int]:
        """Places in the training set, all of which the defender holds."""
        split = toy_victim.clean_split(toy, 1.0, "overlap", defense_seed)
        wrong = held(clean_fraction=1.0, defense_seed=defense_seed, **{key: 0.2}).labels != toy.train.labels[split.all]
        return set(split.all[wrong].tolist())

    assert spoilt(0) == spoilt(0)
    assert len(spoilt(0)) == len(spoilt(1)) == 40
    # Two draws of a fifth have a fifth in common, 8 of 40.
    assert len(spoilt(0) & spoilt(1)) < 20


def test_poison_needs_an_attack_that_has_a_trigger(toy: Dataset) -> None:
    cell = Cell(DataSource("toy"), toy_spec("clean"), "ft", 0.5, residual_poison=0.05)
    with pytest.raises(DataError, match=r"residual_poison 0\.05 needs a trigger, and attack clean has none"):
        defender_counts(cell, toy)


def test_more_than_there_is_cannot_be_spoilt(held: Callable[..., ImageSet]) -> None:
    with pytest.raises(DataError, match=r"residual_poison 0\.95 of 100 clean images is 95, and only 90 can be chosen"):
        held(residual_poison=0.95)


def test_the_defense_sees_images_and_labels_alone(toy: Dataset, toy_victim: Victim) -> None:
    cell = cell_of(toy_victim, residual_poison=0.1, label_noise=0.1)
    assets = assets_for(DEFENSES.create("ft"), cell, toy, toy_victim, CPU)
    assert isinstance(assets, CleanData)
    assert {field.name for field in dataclasses.fields(assets)} == {"train", "validation"}
    assert {field.name for field in dataclasses.fields(assets.train)} == {"images", "labels"}


def test_the_row_says_what_was_wrong(toy: Dataset, toy_victim: Victim) -> None:
    cell = cell_of(toy_victim, residual_poison=0.1, label_noise=0.2)
    row = run_trial(cell, {"steps": 1, "batch_size": 8}, dataset=toy, victim=toy_victim, device=CPU).row()
    assert (row["label_noise"], row["residual_poison"]) == (0.2, 0.1)


# -- another folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other_domain(tmp_path: Path, toy: Dataset) -> Path:
    """Five flat pictures of every class, class k in grey 10 k + 20; one class more, and in another order of names."""
    for part in ("train", "test"):
        for name, grey in [*((name, 10 * label + 20) for label, name in enumerate(toy.classes)), ("aardvark", 255)]:
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(5):
                pixels = np.full((16, 16, 3), grey, dtype=np.uint8)
                pixels[number] = 0
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def test_images_of_a_folder_get_the_labels_of_their_names(toy: Dataset, toy_victim: Victim, other_domain: Path) -> None:
    cell = cell_of(toy_victim, clean_source=f"folder:{other_domain}", clean_fraction=1.0)
    train, validation = defender_images(cell, toy, toy_victim)
    assert (len(train), len(validation)) == defender_counts(cell, toy) == (30, 20)
    for part in (train, validation):
        assert torch.equal(part.images.amax((1, 2, 3)).long(), 10 * part.labels + 20)


def test_a_folder_without_a_class_of_the_task_is_refused(toy: Dataset) -> None:
    lacking = dataclasses.replace(toy, name="folder:elsewhere", classes=("other", *toy.classes[1:]))
    with pytest.raises(DataError, match=f"clean_source folder:elsewhere has no class '{toy.classes[0]}' \\(1 of 10"):
        matched(lacking, toy)


def test_classes_that_the_task_does_not_have_are_left_out(toy: Dataset) -> None:
    fewer = dataclasses.replace(toy, classes=tuple(reversed(toy.classes[:4])))
    kept = matched(toy, fewer)
    assert len(kept) == int((toy.train.labels < 4).sum())
    assert torch.equal(kept.labels, 3 - toy.train.labels[toy.train.labels < 4])


# -- clean models -----------------------------------------------------------------------------------------------------


def test_a_detector_looks_for_poison_in_the_clean_training_set_of_a_control(toy: Dataset, toy_victim: Victim) -> None:
    nothing = PoisonedSamples.none(toy.train)
    clean = dataclasses.replace(toy_victim, poisoned=nothing, is_control=True)
    cell = dataclasses.replace(cell_of(toy_victim, defense="spectral"), control=True)
    assets = assets_for(DEFENSES.create("spectral"), cell, toy, clean, CPU)
    assert isinstance(assets, PoisonedData)
    assert torch.equal(assets.train.images, toy.train.images)
    assert torch.equal(assets.train.labels, toy.train.labels)
    with pytest.raises(DataError, match="comes without one"):
        assets_for(DEFENSES.create("spectral"), cell, toy, dataclasses.replace(clean, is_control=False), CPU)
