"""The images that a defender with clean data holds, and what is wrong with them: source, labels, poison."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from trainables.attacks.base import ATTACKS
from trainables.attacks.triggers import stamp
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.data.sources.folders import FOLDER
from trainables.data.split import CleanSplit, split_clean
from trainables.defenses.base import CleanData, Defense
from trainables.job import Cell
from trainables.seeding import generator_for
from trainables.victims.victim import Victim


def defender_images(cell: Cell, dataset: Dataset, victim: Victim) -> tuple[ImageSet, ImageSet]:
    """Training and validation images of the cell's defender, on the CPU.

    A share ``cell.residual_poison`` of all of them carries the victim's trigger and the label that the attacker wants,
    and of the others as many as ``cell.label_noise`` of all have a wrong label, each wrong class equally likely. Both
    lie among the validation images too: their owner does not know of them. Under one seed the images that a smaller
    share spoils are among those that a larger one spoils, with the same wrong labels.

    Raises:
        DataError: the images cannot be drawn, or fewer images than that can be spoiled.
    """
    source, split = _drawn(cell, dataset, victim)
    held = source.subset(split.all)
    if cell.is_spoiled:
        held = _spoiled(held, cell, dataset.num_classes, victim)
    at = torch.arange(len(held))
    return held.subset(at[: len(split.train)]), held.subset(at[len(split.train) :])


def defender_counts(cell: Cell, dataset: Dataset) -> tuple[int, int]:
    """How many training and validation images that will be, without a victim (DataError: see `defender_images`)."""
    if cell.residual_poison > 0 and not ATTACKS.get(cell.attack).implants_backdoor:
        raise DataError(f"residual_poison {cell.residual_poison:g} needs a trigger, and attack {cell.attack} has none")
    if is_folder(cell.clean_source):
        split = _of_folder(cell, dataset)[1]
    else:
        labels = dataset.train.labels
        split = split_clean(labels, cell.clean_fraction, num_classes=dataset.num_classes, seed=cell.seed)
    return len(split.train), len(split.validation)


def begins_with_fresh_head(defense: Defense, cell: Cell) -> bool:
    """Whether the defender gets the model under a new head with random weights, and trains it."""
    return cell.fresh_head and defense.owns is CleanData


def check_head(defense: Defense, cell: Cell) -> None:
    """Refuse to hand a model under a random head to a defense that goes by its outputs (DataError)."""
    if defense.judges_outputs and begins_with_fresh_head(defense, cell):
        raise DataError(
            f"defense {defense.name} goes by the outputs of the model that it is given, and scenario.head: fresh gives "
            "it a random head; use scenario.head: probe"
        )


def is_folder(clean_source: str) -> bool:
    """Whether a ``clean_source`` names a folder of images beside the task's own."""
    return clean_source.startswith(FOLDER)


def source_key(cell: Cell, dataset: Dataset) -> list[object]:
    """What tells a defender's images from those of a cell without its spoilt data; empty where nothing is spoilt."""
    key: list[object] = [cell.label_noise, cell.residual_poison] if cell.is_spoiled else []
    if is_folder(cell.clean_source):  # the same path may hold other pictures tomorrow
        key.append(_folder(cell.clean_source, dataset.image_size, cell.data.root).fingerprint)
    return key


def _drawn(cell: Cell, dataset: Dataset, victim: Victim) -> tuple[ImageSet, CleanSplit]:
    """Where the images lie, and their places there."""
    if is_folder(cell.clean_source):
        return _of_folder(cell, dataset)
    split = victim.clean_split(dataset, cell.clean_fraction, cell.clean_source, cell.defense_seed)
    return dataset.train, split


def _of_folder(cell: Cell, dataset: Dataset) -> tuple[ImageSet, CleanSplit]:
    """The folder's training part with the labels of the task, and ``clean_fraction`` of every class of it."""
    images = matched(_folder(cell.clean_source, dataset.image_size, cell.data.root), dataset)
    own = (cell.defense_seed,) if cell.defense_seed else ()
    stream = torch.randint(0, 2**62, (), generator=generator_for(cell.seed, "clean-folder", *own))
    classes = dataset.num_classes
    return images, split_clean(images.labels, cell.clean_fraction, num_classes=classes, seed=int(stream))


@lru_cache(maxsize=2)
def _folder(name: str, image_size: int, root: Path | None) -> Dataset:
    return load_dataset(name, image_size=image_size, root=root)


def matched(other: Dataset, dataset: Dataset) -> ImageSet:
    """Training images of another data set under the labels of this one, by the names of the classes.

    Classes that this task does not have are left out.

    Raises:
        DataError: a class of this task has no namesake there.
    """
    missing = [name for name in dataset.classes if name not in other.classes]
    if missing:
        raise DataError(
            f"clean_source {other.name} has no class {missing[0]!r} ({len(missing)} of {dataset.num_classes} classes "
            f"of {dataset.name} are missing; it has {', '.join(other.classes[:5])}{', ...' * (len(other.classes) > 5)})"
        )
    number = {name: label for label, name in enumerate(dataset.classes)}
    labels = torch.tensor([number.get(name, -1) for name in other.classes])[other.train.labels]
    kept = (labels >= 0).nonzero()[:, 0]
    return ImageSet(other.train.images[kept], labels[kept])


def _spoiled(held: ImageSet, cell: Cell, num_classes: int, victim: Victim) -> ImageSet:
    """A copy with the cell's shares of poison and of wrong labels, on different images."""
    poison = _first(cell.residual_poison, len(held), _poisonable(held, cell, num_classes), cell, "residual_poison")
    left = torch.ones(len(held), dtype=torch.bool)
    left[poison] = False
    wrong = _first(cell.label_noise, len(held), left, cell, "label_noise")
    images, labels = held.images.clone(), held.labels.clone()
    if len(poison):
        attack = cell.victim.make_attack()
        images[poison] = stamp(victim.trigger.cpu(), held.images[poison])
        labels[poison] = attack.targets(held.labels[poison], num_classes)
    own = generator_for(cell.seed, "label-noise", "class", cell.defense_seed)
    steps = torch.randint(1, num_classes, (len(held),), generator=own)
    labels[wrong] = (held.labels[wrong] + steps[wrong]) % num_classes
    return ImageSet(images, labels)


def _poisonable(held: ImageSet, cell: Cell, num_classes: int) -> Tensor:
    """Which images the attacker would give another label: bool, (N,)."""
    if cell.residual_poison == 0:
        return torch.zeros(len(held), dtype=torch.bool)
    return cell.victim.make_attack().targets(held.labels, num_classes) != held.labels


def _first(share: float, n: int, allowed: Tensor, cell: Cell, key: str) -> Tensor:
    """The first ``share`` of ``n``, of those that are ``allowed``, in an order that the seeds and ``key`` decide."""
    order = torch.randperm(n, generator=generator_for(cell.seed, key, cell.defense_seed))
    order, count = order[allowed[order]], round(share * n)
    if count > len(order):
        raise DataError(f"{key} {share:g} of {n} clean images is {count}, and only {len(order)} can be chosen")
    return order[:count]
