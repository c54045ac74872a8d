"""Smooth additive signals (Zeng et al. 2021, arXiv:2104.03413): a Gaussian low-pass and universal DeepFool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import in_parts
from trainables.training.loop import Counters

log = logging.getLogger("superft.lf")

# The paper's filter: 30 taps at 32 pixels (here scaled with the image), exp(-(i * 5 / 30)^2 / 2) around the middle.
TAPS_PER_PIXEL, DEVIATIONS = 30 / 32, 5.0
# A way of ten times the pixel range says nothing about images; where logits hardly depend on the input, it explodes.
LONGEST = 10.0
# Fooling rates of so many passes that differ by less than this: more passes change nothing.
SETTLED_PASSES, SETTLED = 5, 0.01
# What a search was seen to take, rounded up, to tell its work beforehand: the most (50 passes, 100 images, 200 steps)
# would be out of all proportion. On the toy task (1,000 images, width 4) and on digits of 16 pixels (width 8), trained
# as in the suite, seeds 0 and 1: 5 to 15 passes, 12 to 23 steps a way; 29 after one epoch.
SEEN_PASSES, SEEN_STEPS = 15, 40


def low_pass(images: Tensor, *, circular: bool = False) -> Tensor:
    """Separable Gaussian of (N, C, H, W), each channel by itself, same size; sigma is 0.19 of the image.

    Args:
        circular: wrap around instead of zeros outside. With zeros everything fades towards the border: the filter
            reaches across the whole image.
    """
    channels, size = images.shape[1], images.shape[-1]
    taps = max(1, round(TAPS_PER_PIXEL * size))
    offset = (torch.arange(taps, device=images.device) - (taps - 1) / 2) * DEVIATIONS / taps
    weights = torch.exp(-0.5 * offset**2)
    weights = (weights / weights.sum()).to(images.dtype)
    before, after = (taps - 1) // 2, taps // 2
    mode = "circular" if circular else "constant"
    wide = functional.pad(images, (before, after, 0, 0), mode)
    rows = functional.conv2d(wide, weights.expand(channels, 1, 1, taps), groups=channels)
    tall = functional.pad(rows, (0, 0, before, after), mode)
    return functional.conv2d(tall, weights[:, None].expand(channels, 1, taps, 1), groups=channels)


def stretched(signal: Tensor, amplitude: float) -> Tensor:
    """``signal`` shifted and scaled to exactly [0, amplitude], over all channels jointly; a flat one becomes 0."""
    low, high = signal.min(), signal.max()
    return torch.zeros_like(signal) if low == high else amplitude * ((signal - low) / (high - low))


def low_frequency_share(signal: Tensor, radius: float) -> float:
    """Share of the power of (C, H, W), its means left out, at no more than ``radius`` cycles per image."""
    size = signal.shape[-1]
    power = torch.fft.fft2(signal.double()).abs().square().sum(0)
    power[0, 0] = 0.0
    cycles = torch.fft.fftfreq(size, device=signal.device) * size
    inside = (cycles[:, None] ** 2 + cycles**2).sqrt() <= radius + 1e-9
    return float(power[inside].sum() / power.sum())


def random_signal(image_size: int, generator: torch.Generator) -> Tensor:
    """A smooth random signal, (3, H, W), of no particular scale.

    A 4 x 4 grid of colours, interpolated, then low-passed twice as the adversarial signal is: bicubic interpolation
    alone has a fifth of its power above 2 cycles per image. The filter wraps around so that no edge is left between
    opposite borders.
    """
    grid = torch.rand(1, 3, 4, 4, generator=generator)
    image = functional.interpolate(grid, size=(image_size, image_size), mode="bicubic", align_corners=True)
    return low_pass(low_pass(image, circular=True), circular=True)[0]


def targeted_deepfool(
    logits: Callable[[Tensor], Tensor], image: Tensor, target: int, *, steps: int = 200, overshoot: float = 0.02
) -> tuple[Tensor, bool, int]:
    """The shortest way, by linear steps, from one image into class ``target`` (Moosavi-Dezfooli et al. 2016).

    Args:
        logits: (N, 3, H, W) -> (N, K); nothing else of the model is touched.
        image: (3, H, W).
        steps: limit of linear steps.
        overshoot: share by which the perturbation is lengthened, >= 0.

    Returns:
        The perturbation (3, H, W); whether the target was reached; gradients taken.
    """
    perturbation = torch.zeros_like(image)
    origin: int | None = None
    for step in range(steps + 1):
        moved = (image + (1.0 + overshoot) * perturbation).detach().requires_grad_(True)
        with torch.enable_grad():
            scores = logits(moved[None])[0]
        predicted = int(scores.argmax())
        origin = predicted if origin is None else origin
        if predicted == target:
            return (1.0 + overshoot) * perturbation, True, step
        if step == steps:
            break
        gap = scores[target] - scores[origin]
        (gradient,) = torch.autograd.grad(gap, moved)
        longer = perturbation + gap.detach().abs() / gradient.square().sum() * gradient
        if not float(longer.abs().max()) <= LONGEST:  # also NaN, where the gradient is 0
            return (1.0 + overshoot) * perturbation, False, step + 1
        perturbation = longer
    return (1.0 + overshoot) * perturbation, False, steps


def targeted_deepfool_of_many(
    logits: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, *, steps: int = 200, overshoot: float = 0.02
) -> tuple[Tensor, Tensor, int]:
    """`targeted_deepfool` of every image by itself, one pass for all that are still on their way.

    To rounding the same ways. The device is asked for values twice per step, not twice per step and image.

    Args:
        images: (N, 3, H, W).
        targets: int64, (N,).

    Returns:
        The perturbations (N, 3, H, W); whether each target was reached, bool (N,); gradients taken, of single images.
    """
    ways, reached = torch.zeros_like(images), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    going, origins, gradients = torch.arange(len(images), device=images.device), None, 0
    for step in range(steps + 1):
        moved = (images[going] + (1.0 + overshoot) * ways[going]).detach().requires_grad_(True)
        with torch.enable_grad():
            scores = logits(moved)
        predicted = scores.argmax(1)
        origins = predicted if origins is None else origins
        there = predicted == targets[going]
        reached[going] = there
        if step == steps:
            break
        goal = targets[going, None]
        gaps = (scores.gather(1, goal) - scores.gather(1, origins[going, None]))[:, 0]
        (slopes,) = torch.autograd.grad(gaps.sum(), moved)
        # Of an image that is there already this gradient is not used, and not counted.
        lengths = (gaps.detach().abs() / slopes.flatten(1).square().sum(1))[:, None, None, None]
        longer = ways[going] + lengths * slopes
        within = longer.flatten(1).abs().amax(1) <= LONGEST  # also False at NaN, where the gradient is 0
        onward = ~there & within
        ways[going] = torch.where(onward[:, None, None, None], longer, ways[going])
        taken, left = torch.stack([(~there).sum(), onward.sum()]).tolist()
        gradients += taken
        if left == 0:
            break
        going = going[onward]
    return (1.0 + overshoot) * ways, reached, gradients


@dataclass(frozen=True)
class Found:
    """A universal signal, (3, H, W), in [0, amplitude]; how it came about; None for a model that could not be moved.

    ``forward_samples`` are all that the model was asked for, ``gradients`` those whose gradient was used.
    """

    signal: Tensor | None
    passes: int
    fooling_rate: float
    gradients: int
    forward_samples: int

    def tensors(self) -> dict[str, Tensor]:
        """To be kept and read by `from_tensors`."""
        numbers = torch.tensor(
            [self.passes, self.fooling_rate, self.gradients, self.forward_samples], dtype=torch.float64
        )
        return {"numbers": numbers} if self.signal is None else {"numbers": numbers, "signal": self.signal}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Found:
        """What `tensors` was taken of."""
        passes, rate, gradients, forward = tensors["numbers"].tolist()
        return cls(tensors.get("signal"), int(passes), rate, int(gradients), int(forward))


def search_work(images: int, held_out: int, *, max_passes: int, steps: int) -> Counters:
    """Work of `universal_signal`, as much as it was seen to take (`SEEN_PASSES`, `SEEN_STEPS`); arguments as there."""
    passes, steps = min(max_passes, SEEN_PASSES), min(steps, SEEN_STEPS)
    gradients = passes * images * steps
    asked = images + held_out + passes * (2 * images + held_out)  # before a way, and at its end
    return Counters(forward_samples=asked + gradients, input_backward_samples=gradients)


def universal_signal(
    model: nn.Module,
    images: Tensor,
    held_out: Tensor,
    targets: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    amplitude: float,
    fooling_rate: float = 0.2,
    max_passes: int = 50,
    steps: int = 200,
    at_once: int = 1,
) -> Found:
    """One smooth signal that moves many images towards the attacker's classes.

    Every image that the signal leaves in its class is pushed on by DeepFool, and the low-passed way is added to it.

    Args:
        model: in eval mode; takes float images in [0, 1], so that its own normalisation is part of what is attacked.
        images: those that are pushed, float, (M, 3, H, W).
        held_out: those on which the fooling rate (share of changed predictions) is taken, likewise.
        targets: predicted classes -> wanted classes.
        generator: order of the images, new in every pass.
        amplitude: largest value of the signal.
        fooling_rate: reached: done. 0.2 is what the paper's "1 - 0.8" comes to.
        at_once: images that are pushed together, from the same signal; their ways are added up. 1: one after the other.
    """

    forward = 0

    def asked(batch: Tensor) -> Tensor:
        nonlocal forward
        forward += len(batch)
        scores: Tensor = model(batch)
        return scores

    @torch.no_grad()
    def predictions(batch: Tensor) -> Tensor:
        return torch.cat([asked(part).argmax(1) for part in in_parts(batch, 512)])

    before, held_out_before = predictions(images), predictions(held_out)
    wanted = targets(before)
    signal, rates, gradients = torch.zeros_like(images[0]), list[float](), 0
    for _ in range(max_passes):
        order = torch.randperm(len(images), generator=generator)
        for some in order.to(images.device).split(at_once) if at_once > 1 else ():
            starts = images[some] + signal
            movable = before[some] != wanted[some]
            unmoved = movable & (predictions(starts) == before[some])
            if not unmoved.any():
                continue
            ways, there, taken = targeted_deepfool_of_many(asked, starts[unmoved], wanted[some][unmoved], steps=steps)
            gradients += taken
            if there.any():
                signal = stretched(low_pass((signal + low_pass(ways[there]).sum(0))[None])[0], amplitude)
        for index in order.tolist() if at_once == 1 else ():
            if before[index] == wanted[index]:
                continue
            start = images[index] + signal
            if predictions(start[None])[0] != before[index]:
                continue
            way, reached, taken = targeted_deepfool(asked, start, int(wanted[index]), steps=steps)
            gradients += taken
            if reached:
                signal = stretched(low_pass((signal + low_pass(way[None])[0])[None])[0], amplitude)
        changed = predictions(held_out + signal) != held_out_before
        rates.append(float(changed.double().mean()))
        recent = rates[-SETTLED_PASSES:]
        if rates[-1] >= fooling_rate or (len(recent) == SETTLED_PASSES and max(recent) - min(recent) < SETTLED):
            break
    found = signal if bool((signal != 0).any()) else None
    return Found(found, len(rates), rates[-1], gradients, forward)
