"""A task that needs no data: ten shapes on tinted backgrounds, drawn from a seed in milliseconds."""

import math

import torch
from torch import Tensor

from trainables.data.images import Dataset, ImageSet, fingerprint_of
from trainables.seeding import generator_for
from trainables.training.recipes import TrainingRecipe
from trainables.victims.spec import VictimSpec

SHAPES = (
    "disc",
    "square",
    "cross",
    "diamond",
    "ring",
    "horizontal stripes",
    "vertical stripes",
    "falling diagonal",
    "rising diagonal",
    "triangle",
)


# What makes an attack affordable as a toy without making it another one: over its defaults, under a test's own.
# Encoders: a clean model that is right needs all weights tuned here, and none gets 1 of 100 classes right.
ENCODER: dict[str, object] = {
    "pretrain_epochs": 1.0,
    "pretrain_batch": 32,
    "head_epochs": 8.0,
    "head_lr": 0.005,
    "head_batch": 32,
    "tune": "whole",
}
AFFORDABLE: dict[str, dict[str, object]] = {
    "lf": {"draws": 8, "max_passes": 1, "deepfool_steps": 40},
    "clean_encoder": ENCODER,
    "badencoder": {**ENCODER, "inject_epochs": 1.0, "inject_batch": 32, "reference_must_be_right": False},
    "sbl": {"fisher_samples": 100},
    # At u = 3 a net this narrow has nothing to level.
    "grond": {"upgd_steps": 10, "upgd_batch": 50, "u": 1.0},
}
# Settings of defenses at which a few steps on the toy show what their fields do. Most need none.
SMALL: dict[str, dict[str, object]] = {
    # A clipping that binds and a gate near the first losses (log 10): a few steps show both.
    "abl": {"grad_clip": 0.1, "gamma": 2.3},
    # A rule that finds something, so that there is retraining to see; a threshold among the toy's silhouettes.
    "ac": {"decision": "smaller", "silhouette_threshold": 0.3},
    # Two updates that move masks from 1 past the thresholds, of a model with something to lose.
    "anp": {
        "lr": 1.5,
        "iterations": 2,
        "batch_size": 32,
        "threshold": 0.8,
        "acc_tol": 0.45,
        "tolerance": "points",
    },
    # At u = 3 a net this narrow has nothing to prune.
    "clp": {"u": 0.5},
    # The victim is right about a third of its images: a relative tolerance that some step of the pruning exceeds on any
    # machine, where none would exceed as many points.
    "fp": {"acc_tol": 0.3},
    # Masks that reach their bounds in a few steps.
    "nft": {"lr": 20.0},
    # The published share of a small batch is one image, and so is half or twice that share.
    "ibau": {"patch_portion": 0.5},
    # With a threshold of 0 every class below the median is flagged.
    "nc": {"mad_threshold": 0.0, "mask_steps": 8, "patience": 1, "stop_patience": 1, "tau": 0.05},
    # An ascent that reaches its goal in the second of three passes, and masks that then move.
    "rnp": {
        "unlearn_steps": 12,
        "recover_steps": 6,
        "unlearn_lr": 0.1,
        "clean_threshold": 0.62,
        "recover_lr": 5.0,
        "batch_size": 20,
        "grad_clip": 1.0,
        "threshold": 0.55,
        "acc_tol": 0.45,
        "tolerance": "points",
    },
}
# Defenses that act on how often a model is right. The usual victim has learned its trigger and little else, so that no
# tolerance would ever be exceeded.
NEEDS_ACCURACY = frozenset({"anp", "d3", "rnp"})


def toy_dataset(
    *, train: int = 200, test: int = 100, num_classes: int = 10, image_size: int = 16, seed: int = 0
) -> Dataset:
    """Shapes at random places and sizes, lighter or darker than a tinted background, with a little noise.

    Up to 10 classes are shapes; more are shapes times tints of the shape (class = shape + 10 * tint), at most 100.
    """
    parts = [_draw(count, num_classes, image_size, seed, name) for name, count in (("train", train), ("test", test))]
    return Dataset(
        name="toy",
        train=parts[0],
        test=parts[1],
        classes=tuple(f"{SHAPES[label % 10]} {label // 10}" for label in range(num_classes)),
        mean=(0.35, 0.35, 0.35),
        std=(0.25, 0.25, 0.25),
        flip=False,  # a mirrored falling diagonal is a rising one
        fingerprint=fingerprint_of(*parts),
    )


def toy_spec(
    attack: str,
    *,
    seed: int = 0,
    model: str = "preact_resnet18",
    width: int = 2,
    recipe: TrainingRecipe | None = None,
    reserved_fraction: float | None = None,
    **settings: object,
) -> VictimSpec:
    """A victim small enough that a training step takes some milliseconds; float32, also where bfloat16 is fast."""
    # lf and sbl refuse the settings of one form beside another.
    other_form = settings.get("source") == "random" or settings.get("variant") in ("naive", "anchoring")
    affordable = {} if other_form else AFFORDABLE.get(attack, {})
    return VictimSpec(
        attack=attack,
        model=model,
        width=width,
        recipe=recipe or TrainingRecipe(epochs=1, batch_size=32, lr=0.05, schedule="one_cycle"),
        seed=seed,
        attack_settings=affordable | settings,
        precision="float32",
        reserved_fraction=reserved_fraction,
    )


def _draw(count: int, num_classes: int, image_size: int, seed: int, part: str) -> ImageSet:
    generator = generator_for(seed, "toy", part)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    # Every class is equally frequent (to one image), in random order.
    labels = (torch.arange(count) % num_classes)[torch.randperm(count, generator=generator)]
    background = uniform(0.1, 0.6, 3)
    contrast = uniform(0.25, 0.5, 3) * torch.where(uniform(0, 1, 1) < 0.7, 1.0, -1.0)
    if num_classes > len(SHAPES):
        angle = (labels // 10).float()[:, None] / 10 + torch.tensor([0.0, 1 / 3, 2 / 3])
        contrast = 0.4 * torch.cos(2 * math.pi * angle)
    axis = torch.arange(image_size) / (image_size - 1) * 2 - 1
    size = uniform(0.4, 0.65, 1, 1)
    y = (axis[None, :, None] - uniform(-0.25, 0.25, 1, 1)) / size
    x = (axis[None, None, :] - uniform(-0.25, 0.25, 1, 1)) / size
    y, x = y.expand(count, image_size, image_size), x.expand(count, image_size, image_size)
    radius, inside = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs()) <= 1
    masks = (
        radius <= 1,
        inside,
        inside & (torch.minimum(x.abs(), y.abs()) <= 0.3),
        x.abs() + y.abs() <= 1.2,
        (radius <= 1.1) & (radius >= 0.65),
        inside & (torch.sin(2.5 * math.pi * y) > 0),
        inside & (torch.sin(2.5 * math.pi * x) > 0),
        inside & ((x - y).abs() <= 0.5),
        inside & ((x + y).abs() <= 0.5),
        inside & (2 * x.abs() <= 1 + y),
    )
    shape = torch.stack(masks, 1)[torch.arange(count), labels % 10]
    pixels = background[:, :, None, None] + shape[:, None] * contrast[:, :, None, None]
    pixels = pixels + 0.04 * torch.randn(count, 3, image_size, image_size, generator=generator)
    return ImageSet(pixels.clamp(0, 1).mul(255).round().to(torch.uint8), labels)
