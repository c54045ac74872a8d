"""The one training loop. Every attack and defense that trains, trains here; so every sample is counted here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import FeatureSet, ImageSet, augment, to_float
from trainables.machine.float32 import exact_float32
from trainables.machine.transfer import sent_ahead
from trainables.settings import CountOrZero, NonNegative, ShareBelowOne, check_settings
from trainables.training import captured_step
from trainables.training.captured_step import CapturedStep, is_pure, is_replayable, replayable
from trainables.training.execution import Execution, chosen_execution
from trainables.training.sharpness import frozen_statistics, moved

Schedule = Callable[[int], float]
LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Perturbation = Callable[[Sequence[nn.Parameter]], None]
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OptimizerName = Literal["sgd", "nesterov", "adam", "adamw"]
Precision = Literal["auto", "float32", "bfloat16"]

# A finite check waits for the device; once in so many steps costs nothing and still ends a lost run early.
CHECK_EVERY = 50
# Images per step where a method does not say.
BATCH_SIZE = 256


class DivergedError(ArithmeticError):
    """A loss, a weight or an output became NaN or infinite."""


@dataclass
class Counters:
    """Exact work of a run, in samples. A training step of a batch of n is n forward and n backward samples.

    ``input_backward_samples`` counts gradients with respect to the input alone (trigger reconstruction).
    """

    steps: int = 0
    forward_samples: int = 0
    backward_samples: int = 0
    input_backward_samples: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{name: count + getattr(other, name) for name, count in dataclasses.asdict(self).items()})

    def __sub__(self, other: Counters) -> Counters:
        return Counters(**{name: count - getattr(other, name) for name, count in dataclasses.asdict(self).items()})


def training_work(steps: int, batch_size: int, n: int) -> Counters:
    """Work of ``steps`` training steps of ``batch_size``, cut to the ``n`` images there are, as `fit` counts it."""
    samples = steps * min(batch_size, n)
    return Counters(steps=steps, forward_samples=samples, backward_samples=samples)


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and horizontal flip; each sample draws its own.

    Args:
        padding: pixels of zeros put around an image before the crop, >= 0.
        flip: whether half of the images are mirrored.
    """

    padding: CountOrZero = 4
    flip: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Optimizer:
    """What updates the weights; the learning rate is the schedule's business.

    Args:
        name: ``sgd`` (with momentum), ``nesterov``, ``adam``, ``adamw``.
        momentum: of SGD, in [0, 1); first beta of Adam's.
        weight_decay: how strongly the weights are pulled to 0, >= 0.
        beta2: second beta of Adam's, in [0, 1).
    """

    name: OptimizerName = "sgd"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    beta2: ShareBelowOne = 0.999

    def __post_init__(self) -> None:
        check_settings(self, called={"name": "optimizer"})

    def build(self, parameters: Sequence[nn.Parameter], *, capturable: bool = False) -> torch.optim.Optimizer:
        """The torch optimiser over ``parameters``; its learning rate is 0 until the schedule sets it.

        Args:
            capturable: a CUDA graph may hold its steps, if the rate is a tensor (a replay reads that anew).
        """
        match self.name:
            case "sgd" | "nesterov":
                # Nesterov without momentum is plain SGD; torch refuses the combination.
                nesterov = self.name == "nesterov" and self.momentum > 0
                return torch.optim.SGD(
                    parameters,
                    lr=0.0,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                    nesterov=nesterov,
                    fused=True,
                )
            case "adam" | "adamw":
                made = (torch.optim.Adam if self.name == "adam" else torch.optim.AdamW)(
                    parameters,
                    lr=0.0,
                    betas=(self.momentum, self.beta2),
                    weight_decay=self.weight_decay,
                    fused=True,
                    capturable=capturable,
                )
                # torch warns of capturable steps outside a graph, which the first ones always are.
                made._warned_capturable_if_run_uncaptured = True
                return made


@dataclass
class History:
    """Per step: the learning rate that was used and the batch's mean loss."""

    lr: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[object]:
    """bfloat16 autocast where it pays (``auto``: where the device has it in hardware), float32 otherwise.

    float32 is float32 where the work around it stands under `exact_float32`, as trials, victims and `fit` do.
    """
    precision = resolved_precision(device, precision)
    if precision == "float32":
        return nullcontext()
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")


def resolved_precision(device: torch.device, precision: str) -> str:
    """``float32`` or ``bfloat16``: what ``auto`` means on this device; other words stay as they are."""
    if precision != "auto":
        return precision
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module is back in its own mode (a frozen layer stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@replayable
def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the model's logits."""
    return functional.cross_entropy(model(images), labels)


def batches(
    data: ImageSet | FeatureSet,
    *,
    steps: int,
    batch_size: int,
    augmentation: Augmentation | None,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of float inputs (images in [0, 1], or features) and labels, on the device of ``data``.

    The samples come as one stream of freshly shuffled passes: every batch is full, one that runs over the end of a
    pass takes the rest from the next. Full batches keep shapes constant and batch statistics sound; over any whole
    number of passes every sample is used equally often. ``batch_size`` is cut to the size of the set.
    """
    size = min(batch_size, len(data))
    if size == 0:
        raise ValueError("cannot train on an empty set")
    device, queue = data.inputs.device, torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        if len(queue) < size:
            queue = torch.cat([queue, torch.randperm(len(data), generator=generator)])
        chosen, queue = sent_ahead(queue[:size], device), queue[size:]
        inputs = data.inputs[chosen]
        if augmentation is not None:
            offsets = torch.randint(0, 2 * augmentation.padding + 1, (size, 2), generator=generator)
            flips = torch.rand(size, generator=generator) < 0.5 if augmentation.flip else None
            inputs = augment(
                inputs,
                sent_ahead(offsets, device),
                None if flips is None else sent_ahead(flips, device),
                padding=augmentation.padding,
            )
        yield to_float(inputs) if inputs.dtype == torch.uint8 else inputs, data.labels[chosen]


@exact_float32()
def fit(
    model: nn.Module,
    data: ImageSet | FeatureSet,
    *,
    steps: int,
    lr_at: Schedule,
    generator: torch.Generator,
    batch_size: int = BATCH_SIZE,
    optimizer: Optimizer | None = None,
    momentum_at: Schedule | None = None,
    augmentation: Augmentation | None = None,
    transform: BatchTransform | None = None,
    loss: LossFunction = cross_entropy,
    perturb: Perturbation | None = None,
    trainable: Sequence[nn.Parameter] | None = None,
    bn_mode: Literal["train", "eval"] = "train",
    grad_clip: float | None = None,
    precision: str = "auto",
    counters: Counters | None = None,
    after_step: Callable[[int], None] | None = None,
    until: Callable[[int], bool] | None = None,
    execution: Execution | None = None,
) -> History:
    """Train ``model`` in place for exactly ``steps`` optimiser steps; it is left in eval mode.

    On a card the part of a step from the loss to the update is captured once and replayed (`captured_step`), where
    loss and perturbation are `replayable`, the momentum is constant and there are 20 steps or more.

    Args:
        data: training images, on the device of the model.
        lr_at: learning rate of step 0..steps-1, assigned before the step.
        generator: order, crops and flips come from it (CPU).
        momentum_at: momentum of each step, for schedules that move it; default constant.
        transform: (float images in [0, 1], labels) -> the batch to train on, after the augmentation (attacks that
            build their batches in the loop); None: the batch as it is.
        loss: (model, float images in [0, 1], labels) -> scalar.
        perturb: moves the trained parameters in place, given those with their gradients (sharpness-aware training). The
            gradients are then taken again on the same batch, and the step is made with them from where the weights
            were. Running statistics advance in the first pass alone; both passes are counted; the history shows the
            loss before the move.
        trainable: parameters to update, default all. Batch normalisation none of whose parameters is trained runs
            in eval mode, so that a frozen layer stays bit-identical, running statistics included.
        bn_mode: ``eval`` freezes the running statistics of all batch normalisation.
        grad_clip: largest gradient norm, None for no clipping.
        after_step: called with the step just made (pruning masks, anytime curves).
        until: asked after each step; True ends the training there (goals, early stopping).
        execution: how steps are made, see `execution`; None: as the environment says.

    Raises:
        DivergedError: the loss is NaN or infinite (looked at every 50 steps and at the end), or the last step left a
            weight or running statistic that is.
    """
    optimizer, counters = optimizer or Optimizer(), counters if counters is not None else Counters()
    chosen = list(model.parameters()) if trainable is None else list(trainable)
    chosen_ids = {id(parameter) for parameter in chosen}
    asked_for_gradient = {parameter: parameter.requires_grad for parameter in model.parameters()}
    execution, device = execution or chosen_execution(), data.inputs.device
    graphs = None
    if execution == "auto" and steps >= captured_step.FEWEST_STEPS and momentum_at is None:
        graphs = captured_step.graphs_on(device) if is_replayable(loss) and is_replayable(perturb) else None
    # What counts in Python would be compiled anew for every count.
    objective = torch.compile(loss, dynamic=False) if execution == "compiled" and is_pure(loss) else loss
    updater = optimizer.build(chosen, capturable=graphs is not None)
    if graphs is not None:
        updater.param_groups[0]["lr"] = torch.zeros((), device=device)
    history, losses = History(), list[Tensor]()

    def differentiate(images: Tensor, labels: Tensor) -> Tensor:
        with autocast(images.device, precision):
            value = objective(model, images, labels)
        updater.zero_grad(set_to_none=True)
        value.backward()
        counters.forward_samples += len(labels)
        counters.backward_samples += len(labels)
        return value

    def update(images: Tensor, labels: Tensor) -> Tensor:
        value = differentiate(images, labels)
        if perturb is not None:
            with moved(chosen, perturb), frozen_statistics(model):
                differentiate(images, labels)
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(chosen, grad_clip)
        updater.step()
        return value.detach()

    make_step = update if graphs is None else CapturedStep(update, model, counters, graphs)
    model.to(memory_format=torch.channels_last)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            bn_mode == "eval" or not any(id(parameter) in chosen_ids for parameter in module.parameters())
        ):
            module.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen_ids)
    try:
        stream = batches(data, steps=steps, batch_size=batch_size, augmentation=augmentation, generator=generator)
        for step, (images, labels) in enumerate(stream):
            rate = lr_at(step)
            for group in updater.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
                if momentum_at is not None:
                    group["momentum"] = momentum_at(step)
            if transform is not None:
                images, labels = transform(images, labels)
            losses.append(make_step(images, labels))
            counters.steps += 1
            history.lr.append(rate)
            ended = (until is not None and until(step)) or step + 1 == steps
            if ended or (step + 1) % CHECK_EVERY == 0:
                _collect(losses, history, step)
            if after_step is not None:
                after_step(step)
            if ended:
                break
        _check_finite(model)
    finally:
        for parameter, asked in asked_for_gradient.items():
            parameter.requires_grad_(asked)
            parameter.grad = None
        model.eval()
    return history


@exact_float32()
@torch.no_grad()
def refresh_statistics(model: nn.Module, images: Tensor, *, counters: Counters, batch_size: int = 256) -> None:
    """Running statistics of all batch normalisation as they are over uint8 ``images``; nothing else is changed.

    They are the mean over equal batches, in place of the moving average. The model is left in eval mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative
    try:
        # Batches of equal size: a small last one would count as much as the others.
        for batch in images.chunk(-(-len(images) // batch_size)):
            model(to_float(batch))
            counters.forward_samples += len(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def _check_finite(model: nn.Module) -> None:
    # The last step moves the weights after its loss was taken, so a finite loss alone does not vouch for them.
    state = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if state and not torch.stack([tensor.isfinite().all() for tensor in state]).all():
        raise DivergedError("the training left weights that are not finite")


def _collect(losses: list[Tensor], history: History, step: int) -> None:
    values = torch.stack(losses).float().tolist()
    losses.clear()
    history.loss.extend(values)
    if not torch.tensor(values).isfinite().all():
        raise DivergedError(f"the training loss is not finite (noticed at step {step})")
