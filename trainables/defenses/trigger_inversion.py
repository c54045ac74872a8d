"""Trigger inversion (Wang et al. 2019, Neural Cleanse): for each class the smallest patch that sends everything there.

All classes are one batched problem: every step takes one batch of clean images, puts each class's own patch on it and
passes them through the model together. The classes share nothing but the images, so the patches are those of a loop
over classes; a class that has settled leaves the batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from trainables.data.images import to_float
from trainables.defenses.class_passes import ClassPasses
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.training.loop import DivergedError, autocast
from trainables.training.trainer import Trainer

# The cost of the mask falls faster than it rises: a class whose trigger was lost should find it again soon.
COST_UP, COST_DOWN = 2.0, 2.0**1.5
# A class that every image reaches unaided would raise its cost for ever, beyond the finite numbers.
COST_LIMIT = 1e6
# A mask must shrink by this much to count as progress.
PROGRESS = 0.99


@dataclass(frozen=True)
class Inversion:
    """How triggers are sought.

    Args:
        init_cost: weight of the mask's L1 norm at the start, > 0.
        tau: share of images that must reach the class, in (0, 1].
        epochs: most passes over the images, per class, >= 1.
        lr: of Adam (betas 0.5, 0.9) on mask and pattern before their tanh, > 0.
        batch_size: images per step, >= 1.
        patience: epochs in a row at or above (below) tau before the cost rises (falls), >= 1.
        stop_patience: epochs without progress after which a class is done, once its cost went both ways, >= 1.
    """

    init_cost: float = 1e-3
    tau: float = 0.98
    epochs: int = 80
    lr: float = 0.1
    batch_size: int = 256
    patience: int = 5
    stop_patience: int = 25


@dataclass
class CostController:
    """Steers one class's weight of the mask norm, keeps the smallest norm that still works, and says when to stop.

    Args:
        rules: thresholds.
        cost: current weight.
        best: smallest norm with success >= tau so far; infinite before there is one.
    """

    rules: Inversion
    cost: float = field(init=False)
    best: float = field(init=False, default=float("inf"))
    _above: int = field(init=False, default=0)
    _below: int = field(init=False, default=0)
    _rose: bool = field(init=False, default=False)
    _fell: bool = field(init=False, default=False)
    _stale: int = field(init=False, default=0)
    _reference: float = field(init=False, default=float("inf"))

    def __post_init__(self) -> None:
        self.cost = self.rules.init_cost

    def update(self, success: float, norm: float) -> bool:
        """Take in one epoch; whether this mask is the best so far."""
        works = success >= self.rules.tau
        better = works and norm < self.best
        if better:
            self.best = norm
        self._above, self._below = (self._above + 1, 0) if works else (0, self._below + 1)
        if self._above >= self.rules.patience:
            self.cost, self._above, self._rose = min(self.cost * COST_UP, COST_LIMIT), 0, True
        if self._below >= self.rules.patience:
            self.cost, self._below, self._fell = self.cost / COST_DOWN, 0, True
        if self.best < PROGRESS * self._reference:
            self._reference, self._stale = self.best, 0
        elif self.best < float("inf"):
            self._stale += 1
        return better

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be expected: no progress, though the cost was tried both ways or to its limit."""
        tried = (self._rose and self._fell) or self.cost >= COST_LIMIT
        return tried and self._stale >= self.rules.stop_patience


@dataclass(frozen=True)
class Triggers:
    """One patch per class: x' = (1 - mask) x + mask pattern.

    Args:
        masks: float32 (C, 1, H, W), in [0, 1].
        patterns: float32 (C, 3, H, W), in [0, 1] (pixels, before normalisation).
        success: share of images sent to the class in the epoch that ended with this mask, float32 (C,).
    """

    masks: Tensor
    patterns: Tensor
    success: Tensor

    @property
    def norms(self) -> Tensor:
        """L1 norms of the masks, (C,)."""
        return self.masks.flatten(1).sum(1)


def stamp(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Float images in [0, 1] with a patch put on; shapes broadcast."""
    return (1.0 - mask) * images + mask * pattern


@exact_float32()
def invert_triggers(
    model: Classifier, images: Tensor, trainer: Trainer, rules: Inversion, classes: Sequence[int]
) -> Triggers:
    """Seek a trigger for each of ``classes``, together.

    The model is frozen and in eval mode. Every stamped image counts as one forward and one input-backward sample. The
    outcome for a class does not depend on which others are sought with it (but for rounding in the last digits).

    Args:
        images: clean, uint8 (N, 3, H, W), on the device of the model.

    Raises:
        DivergedError: a mask left the finite numbers.
    """
    device, size, count = images.device, images.shape[-1], len(classes)
    targets = torch.tensor(list(classes), device=device)
    # Where tanh is 0, mask and pattern are 1/2: from a random start near it every pixel can move both ways. Public code
    # starts from all ones, where tanh is flat and its gradient lost.
    start = [torch.randn(4, size, size, generator=trainer.generator("nc-start", int(label))) for label in classes]
    raw = torch.stack(start).to(device).requires_grad_()
    adam = torch.optim.Adam([raw], lr=rules.lr, betas=(0.5, 0.9))
    controllers = [CostController(rules) for _ in classes]
    best = raw.detach().clone()
    best_success = torch.zeros(count, device=device)
    active = list(range(count))
    generator = trainer.generator("nc-batches")
    passes = ClassPasses(model, device, min(rules.batch_size, len(images)), pixels=images[0, 0].numel())

    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    try:
        for _ in range(rules.epochs):
            hits = torch.zeros(count, device=device)
            order = torch.randperm(len(images), generator=generator).to(device)
            # Sent to the device once per epoch: in every pass it would make the CPU wait.
            running = torch.tensor(active, device=device)
            costs = torch.tensor([controllers[i].cost for i in active], device=device)
            for chosen in order.split(rules.batch_size):
                batch = to_float(images[chosen])
                adam.zero_grad(set_to_none=True)
                for part in passes.split(len(active)):
                    group = running[part]
                    masks, patterns = _patches(raw[group])
                    stamped = stamp(batch, masks[:, None], patterns[:, None]).flatten(0, 1)
                    wanted = targets[group].repeat_interleave(len(batch))
                    with passes.watching(), autocast(device, trainer.precision):
                        logits = model(stamped.contiguous(memory_format=torch.channels_last))
                    errors = functional.cross_entropy(logits.float(), wanted, reduction="none")
                    norms = masks.flatten(1).sum(1)
                    # Summed over classes: no class's gradient depends on how many are sought with it.
                    (errors.view(len(group), -1).mean(1) + costs[part] * norms).sum().backward()
                    reached = (logits.detach().argmax(1) == wanted).view(len(group), -1).sum(1)
                    hits.index_add_(0, group, reached.to(hits))
                    trainer.counters.forward_samples += len(wanted)
                    trainer.counters.input_backward_samples += len(wanted)
                adam.step()
            sizes: list[float] = _patches(raw.detach())[0].flatten(1).sum(1).tolist()
            # Divided in double precision: in float32 nine of ten would be less than a tau of 0.9.
            shares = [hit / len(images) for hit in hits.tolist()]
            if not all(map(math.isfinite, sizes)):
                raise DivergedError("a mask of the trigger inversion is not finite")
            for i in active:
                # Where no mask works yet the last one stands in.
                if controllers[i].update(shares[i], sizes[i]) or controllers[i].best == float("inf"):
                    best[i], best_success[i] = raw.detach()[i], shares[i]
            active = [i for i in active if not controllers[i].settled]
            if not active:
                break
    finally:
        for parameter, was in asked:
            parameter.requires_grad_(was)
    masks, patterns = _patches(best)
    return Triggers(masks, patterns, best_success)


def _patches(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (C, 1, H, W) and patterns (C, 3, H, W), in [0, 1], of unbounded values (C, 4, H, W)."""
    bounded = raw.tanh() / (2.0 + 1e-7) + 0.5
    return bounded[:, :1], bounded[:, 1:]


def anomaly_indices(norms: Sequence[float]) -> list[float]:
    """Distance of each norm from the median in units of 1.4826 times the median absolute deviation; >= 0."""
    middle = statistics.median(norms)
    deviations = [abs(norm - middle) for norm in norms]
    # A deviation of 0 (more than half of the norms equal) would make every other class infinitely anomalous.
    spread = 1.4826 * max(statistics.median(deviations), 1e-6)
    return [deviation / spread for deviation in deviations]


def flagged(norms: Sequence[float], threshold: float) -> tuple[int, ...]:
    """Positions whose norm is below the median by more than ``threshold``: only a *small* trigger is suspicious."""
    middle = statistics.median(norms)
    indices = anomaly_indices(norms)
    return tuple(i for i, norm in enumerate(norms) if norm < middle and indices[i] > threshold)
