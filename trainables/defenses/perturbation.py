"""Universal perturbations: one (1, 3, H, W) added to every image, found by descent over the clean set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.data.images import ImageSet
from trainables.models.classifier import Classifier
from trainables.training import loop
from trainables.training.loop import evaluating
from trainables.training.trainer import Trainer

# (images, labels, delta) -> what delta is to make small.
PerturbationLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def seek_perturbation(
    model: nn.Module,
    data: ImageSet,
    trainer: Trainer,
    *,
    loss: PerturbationLoss,
    rate: float | Tensor,
    steps: int,
    bounded: Callable[[Tensor], Tensor],
    batch_size: int,
    augment: bool,
    round_: int,
) -> Tensor:
    """A perturbation of float images in [0, 1] that lowers ``loss``: ``steps`` of gradient descent, from 0.

    Every image counts as one forward and one input-backward sample; a loss that looks twice counts the second itself.

    Args:
        rate: of the descent, a number or (1, 3, 1, 1).
        batch_size: images per step.
        bounded: puts a perturbation back within its bound.
        round_: a random stream of its own for every search.
    """
    delta = torch.zeros((1, *data.images.shape[1:]), device=data.images.device)
    stream = loop.batches(
        data,
        steps=steps,
        batch_size=batch_size,
        augmentation=trainer.augmentation() if augment else None,
        generator=trainer.generator("batches", "perturbation", round_),
    )
    with evaluating(model):
        for images, labels in stream:
            delta.requires_grad_(True)
            (slope,) = torch.autograd.grad(loss(images, labels, delta), delta)
            trainer.counters.forward_samples += len(images)
            trainer.counters.input_backward_samples += len(images)
            delta = bounded(delta.detach() - rate * slope)
    return delta


class PerRound:
    """The perturbation of the current round: sought anew at the first of every ``steps`` training steps, a round.

    Args:
        seek: round from 0 -> perturbation.
    """

    def __init__(self, steps: int, seek: Callable[[int], Tensor]) -> None:
        self.steps, self.seek = steps, seek
        self.current = torch.empty(0)
        self._step = 0

    def next(self) -> Tensor:
        """That of the next step."""
        if self._step % self.steps == 0:
            self.current = self.seek(self._step // self.steps)
        self._step += 1
        return self.current


def rounds(steps: int, round_steps: int) -> int:
    """How often a perturbation is sought in so many training steps; the last round may be shorter."""
    return -(-steps // round_steps)


def within(delta: Tensor, norm: Tensor, bound: float) -> Tensor:
    """``delta``, shortened to ``bound`` where its ``norm`` is larger."""
    return delta * torch.clamp(bound / norm, max=1.0)


def pixel_scale(model: nn.Module) -> Tensor:
    """std^2 per channel, (1, 3, 1, 1): turns a step on normalised images into the same step in pixels."""
    assert isinstance(model, Classifier)
    return model.normalize.std.square()
