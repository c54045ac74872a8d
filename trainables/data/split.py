"""The clean images that a defender holds, drawn from the training set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.classes import class_members
from trainables.data.images import DataError
from trainables.seeding import generator_for


@dataclass(frozen=True)
class CleanSplit:
    """Indices into the training set of what the defender holds; train and validation are disjoint."""

    train: Tensor
    validation: Tensor

    @property
    def all(self) -> Tensor:
        """Both parts: indices of everything that the defender holds."""
        return torch.cat([self.train, self.validation])


VALIDATION_FRACTION = 0.1


def split_clean(
    labels: Tensor, fraction: float, *, num_classes: int, seed: int, pool: Tensor | None = None
) -> CleanSplit:
    """Draw the defender's clean set, stratified by class (`clean_fraction` of every class).

    A tenth of it, and at least 2 per class where a class has 3 or more, is set apart for validation;
    a class with a single image has no validation image.

    Args:
        labels: int64, (N,), of the whole training set.
        fraction: share of every class that the defender holds, in (0, 1].
        num_classes: K.
        seed: of the study cell.
        pool: indices that may be drawn (int64); default all.

    Raises:
        DataError: the fraction is out of range or leaves a class without an image.
    """
    if not 0.0 < fraction <= 1.0:
        raise DataError(f"clean_fraction must be in (0, 1], got {fraction}")
    generator = generator_for(seed, "clean-split")
    pool = torch.arange(len(labels)) if pool is None else pool.cpu()
    labels = labels.cpu()
    train, validation, empty = list[Tensor](), list[Tensor](), list[int]()
    sizes, drawable = torch.bincount(labels, minlength=num_classes).tolist(), class_members(labels[pool], num_classes)
    for label, places in enumerate(drawable):
        members = pool[places]
        # Counted on the whole class, so that `unpoisoned` pools draw as many images as the full one.
        count = min(round(fraction * sizes[label]), len(members))
        if count == 0:
            empty.append(label)
            continue
        drawn = members[torch.randperm(len(members), generator=generator)[:count]]
        held_out = min(max(2, round(VALIDATION_FRACTION * count)), count - 1) if count > 1 else 0
        validation.append(drawn[:held_out])
        train.append(drawn[held_out:])
    if empty:
        if barren := [label for label in empty if not len(drawable[label])]:
            raise DataError(
                f"no clean image of class {barren[0]} can be drawn at any clean_fraction ({len(barren)} of "
                f"{num_classes} classes have none); use other data, or with clean_source unpoisoned a lower poison rate"
            )
        # Rounded up in the last printed digit: rounded down it could fail by a hair.
        needed = math.ceil(1e4 / min(sizes[label] for label in empty)) / 1e4
        raise DataError(
            f"clean_fraction {fraction} leaves {len(empty)} of {num_classes} classes without a clean image "
            f"(class {empty[0]} first); use at least {needed:g}"
        )
    return CleanSplit(torch.cat(train).sort().values, torch.cat(validation).sort().values)
