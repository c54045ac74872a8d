"""Which images a defense really sees at a step, for claims that are worked out by hand."""

import torch

from trainables.data.images import ImageSet
from trainables.training.trainer import Trainer


def shuffled(data: ImageSet, trainer: Trainer, *purpose: str | int) -> ImageSet:
    """``data`` in the order of the first pass of a training without augmentation: its first batch stands in front."""
    order = torch.randperm(len(data), generator=trainer.generator("batches", *(purpose or ("fit",))))
    return data.subset(order)
