"""Seconds to invert the triggers of all classes: one batched problem against a loop over classes, on the same machine.

    python -m benchmarks.neural_cleanse [--width 8] [--size 16] [--images 64] [--epochs 80]

The victim is a model after a short BadNets training on drawn shapes. Three sides take turns within one run:

- ``loop``: class after class as public code does it: float32, NCHW, frozen weights, early stop;
- ``loop, ours``: our own inversion called with one class at a time (early stopping, frozen weights, same precision);
- ``batched``: all classes together.

What batching alone is worth is the ratio of ``loop, ours`` to ``batched``; the other holds precision and layout too.
The ``loop`` of the rows of 2026-11 took the weights' gradients and never stopped early: slower than public code.

The same masks are found: the benchmark records how far those of the sides lie apart and that the flagged classes agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import in_turns, machine, ratio, record, summary
from trainables.data.images import ImageSet, quantise
from trainables.defenses.trigger_inversion import COST_DOWN, COST_UP, PROGRESS, Inversion, flagged, invert_triggers
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

TARGET = 0


def drawn_shapes(count: int, classes: int, size: int) -> ImageSet:
    """Noisy pictures of one smooth pattern per class: easily learned, and drawn in milliseconds."""
    patterns = torch.rand(classes, 3, 4, 4, generator=generator_for(0, "patterns"))
    patterns = functional.interpolate(patterns, size=size, mode="bilinear")
    labels = torch.arange(count) % classes
    noise = 0.15 * torch.randn(count, 3, size, size, generator=generator_for(0, "noise"))
    return ImageSet(quantise((patterns[labels] + noise).clamp(0, 1)), labels)


def poisoned(data: ImageSet) -> ImageSet:
    """A tenth of the images get a white 3x3 corner and the target label."""
    images, labels = data.images.clone(), data.labels.clone()
    images[::11, :, -3:, -3:], labels[::11] = 255, TARGET
    return ImageSet(images, labels)


def loop_of_public_code(model: Classifier, images: Tensor, trainer: Trainer, rules: Inversion, classes: int) -> Tensor:
    """Masks (C, 1, H, W), one class after the other, from the same start and in the same batches as ours."""
    size, found = images.shape[-1], []
    model = model.requires_grad_(False).to(memory_format=torch.contiguous_format)
    for label in range(classes):
        raw = torch.randn(4, size, size, generator=trainer.generator("nc-start", label)).requires_grad_()
        adam = torch.optim.Adam([raw], lr=rules.lr, betas=(0.5, 0.9))
        generator = trainer.generator("nc-batches")
        cost, best, kept, above, below = rules.init_cost, math.inf, raw.detach().clone(), 0, 0
        rose, fell, reference, stale = False, False, math.inf, 0
        for _ in range(rules.epochs):
            hits = 0
            for chosen in torch.randperm(len(images), generator=generator).split(rules.batch_size):
                bounded = raw.tanh() / (2.0 + 1e-7) + 0.5
                mask, pattern = bounded[:1], bounded[1:]
                batch = images[chosen].float() / 255
                logits = model((1 - mask) * batch + mask * pattern)
                wanted = torch.full((len(batch),), label)
                adam.zero_grad()
                (functional.cross_entropy(logits, wanted) + cost * mask.sum()).backward()
                adam.step()
                hits += int((logits.argmax(1) == wanted).sum())
            norm = float((raw.detach()[:1].tanh() / (2.0 + 1e-7) + 0.5).sum())
            works = hits / len(images) >= rules.tau
            if (works and norm < best) or best == math.inf:
                kept = raw.detach().clone()
            best = min(best, norm) if works else best
            above, below = (above + 1, 0) if works else (0, below + 1)
            if above >= rules.patience:
                cost, above, rose = cost * COST_UP, 0, True
            if below >= rules.patience:
                cost, below, fell = cost / COST_DOWN, 0, True
            if best < PROGRESS * reference:
                reference, stale = best, 0
            elif best < math.inf:
                stale += 1
            if rose and fell and stale >= rules.stop_patience:
                break
        found.append(kept[:1].tanh() / (2.0 + 1e-7) + 0.5)
    return torch.stack(found)


def overlap(one: Tensor, other: Tensor) -> list[float]:
    """Per class: intersection over union of two soft masks (C, 1, H, W), sum of minima over sum of maxima."""
    shared, total = torch.minimum(one, other).flatten(1).sum(1), torch.maximum(one, other).flatten(1).sum(1)
    return [float(value) for value in shared / total]


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Each other side against the batched one, turn by turn."""
    return {name: ratio(values, seconds["batched"]) for name, values in seconds.items() if name != "batched"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--images", type=int, default=64, help="clean images of the defender")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--victim-epochs", type=int, default=8)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    rules = Inversion(epochs=arguments.epochs, batch_size=arguments.batch)

    def new_model(generator: torch.Generator) -> Classifier:
        return build_model(
            "preact_resnet18",
            num_classes=arguments.classes,
            width=arguments.width,
            image_size=arguments.size,
            generator=generator,
        )

    trainer = Trainer(torch.device("cpu"), 0, arguments.classes, False, 0, new_model, arguments.precision)
    model = trainer.train_from_scratch(
        poisoned(drawn_shapes(640, arguments.classes, arguments.size)),
        TrainingRecipe(epochs=arguments.victim_epochs, batch_size=32, lr=0.05),
    )
    images = drawn_shapes(arguments.images, arguments.classes, arguments.size).images
    everyone = range(arguments.classes)
    triggered = images[drawn_shapes(arguments.images, arguments.classes, arguments.size).labels != TARGET].clone()
    triggered[:, :, -3:, -3:] = 255
    success = float((predict(model, triggered, precision=arguments.precision) == TARGET).float().mean())
    if success < 0.9:  # without a backdoor other classes settle, at other times
        raise SystemExit(
            f"--victim-epochs {arguments.victim_epochs}: the victim's ASR is {success:.2f}; train it longer"
        )

    def ours_one_by_one() -> Tensor:
        return torch.cat([invert_triggers(model, images, trainer, rules, [label]).masks for label in everyone])

    sides: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: loop_of_public_code(model, images, trainer, rules, arguments.classes),
        "loop, ours": ours_one_by_one,
        "batched": lambda: invert_triggers(model, images, trainer, rules, everyone).masks,
    }
    invert_triggers(model, images, trainer, dataclasses.replace(rules, epochs=1), everyone)  # first touch

    def timed(run: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
        """Processor time beside wall time: it also means something where other programs share the machine."""
        started, worked = time.perf_counter(), time.process_time()
        masks = run()
        return time.perf_counter() - started, time.process_time() - worked, masks

    runs = in_turns({name: partial(timed, run) for name, run in sides.items()}, arguments.repeats)
    seconds = {name: [wall for wall, _, _ in found] for name, found in runs.items()}
    processor = {name: [work for _, work, _ in found] for name, found in runs.items()}
    masks = {name: found[-1][2] for name, found in runs.items()}
    norms = {name: found.flatten(1).sum(1).tolist() for name, found in masks.items()}
    record(
        "neural_cleanse",
        {
            "model": "preact_resnet18",
            **{key: value for key, value in vars(arguments).items() if key != "repeats"},
            "victim_asr": success,
            "seconds": {name: summary(values) for name, values in seconds.items()},
            "processor_seconds": {name: summary(values) for name, values in processor.items()},
            "ratio": ratios(seconds),
            "processor_ratio": ratios(processor),
            "mask_overlap_median": {
                name: statistics.median(overlap(masks[name], masks["batched"])) for name in ("loop", "loop, ours")
            },
            "mask_overlap_lowest": {
                name: min(overlap(masks[name], masks["batched"])) for name in ("loop", "loop, ours")
            },
            "norms": {name: [round(norm, 2) for norm in found] for name, found in norms.items()},
            "flagged": {name: flagged(found, 2.0) for name, found in norms.items()},
            "threads": torch.get_num_threads(),
            **machine(torch.device("cpu")),
        },
    )


if __name__ == "__main__":
    main()
