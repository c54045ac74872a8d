"""WaNet (Nguyen & Tran 2021, arXiv:2102.10369): a smooth warp as trigger, learned with a noise mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trainables.attacks.base import Implanted, Kind, PoisonedSamples, register
from trainables.attacks.in_loop import InLoop
from trainables.attacks.triggers import STAMP_BATCH, Trigger, trigger_kind
from trainables.data.images import ImageSet, in_parts, labelled_parts, quantise, to_float
from trainables.machine.transfer import sent_ahead
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import AtLeast, NonNegative, PositiveShare
from trainables.training.geometry import Draws, Moves, Resampling
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@trigger_kind("warp")
class WarpTrigger(Trigger):
    """Bilinear resampling at fixed places.

    Args:
        image_size: pixels; the buffer is ``grid``, (H, W, 2): where each pixel is read, (x, y) in [-1, 1] with -1 and 1
            at the centres of the outermost pixels (``align_corners``).
    """

    grid: Tensor

    def __init__(self, image_size: int, grid: Tensor | None = None) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("grid", identity_grid(image_size) if grid is None else grid)

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    def forward(self, images: Tensor) -> Tensor:
        return resample(images, self.grid.expand(len(images), -1, -1, -1))

    def noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Warped by the grid plus up to half a pixel of independent noise per pixel and image: no trigger any more."""
        noise = torch.rand(len(images), *self.grid.shape, generator=generator) * 2.0 - 1.0
        return resample(images, (self.grid + sent_ahead(noise, images.device) / self.image_size).clamp(-1.0, 1.0))


@register("wanet")
@dataclass(frozen=True)
class WaNet(InLoop):
    """Displace every pixel by a fraction of a pixel along one smooth field.

    Unlike additive triggers nothing is put into the image: it is bent. A model trained on warped images alone would
    take any distortion for the trigger; noise samples, warped with random noise on top under their true labels, teach
    it the one field. It learns slowly: on few images expect many epochs, or ask for a larger ``strength``.

    The recipe of the study trains it; the paper's own is SGD at 0.01 with steps far beyond BackdoorBench's 100 epochs.
    Its control is trained under the same ``augmentation``.

    Args:
        grid_size: control points per side, >= 2.
        strength: mean displacement of the control points in half pixels, >= 0.
        grid_rescale: factor on the whole grid, in (0, 1]: below 1 it also zooms in.
        cross_ratio: noise samples per poisoned sample.
        augmentation: of the assembled batch. ``none``; ``batch``: crop, rotation and flip, drawn once for all of it,
            as in BackdoorBench; ``sample``: drawn for every sample, as in the authors' code; ``crop``: every sample,
            without rotation. The warp moves with the image, and where images or epochs are few it is not learned then:
            on digits (recipe ``quick``) ASR is 0.976 without, and at most 0.04 with any of them.
        resampling: of rotated images: ``nearest``, as in BackdoorBench; ``bilinear``, as in the authors' code, blurs
            as much as the warp does.
    """

    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"resampling": {"augmentation": "sample"}}

    cross_ratio: NonNegative = 2.0
    grid_size: Annotated[int, AtLeast(2)] = 4
    strength: NonNegative = 0.5
    grid_rescale: PositiveShare = 1.0
    augmentation: Draws = "none"
    resampling: Resampling = "nearest"

    def control(self) -> tuple[str, dict[str, Any]]:
        return "clean_wanet", {"augmentation": self.augmentation, "resampling": self.resampling}

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size and self.grid_size > image_size:
            raise SettingError(
                f"attack.{self.name}.grid_size must be at most the image size ({image_size}), got {self.grid_size}"
            )

    def make_trigger(self, image_size: int, seed: int) -> WarpTrigger:
        """The warp, drawn once per seed."""
        shape = (1, 2, self.grid_size, self.grid_size)
        points = torch.rand(shape, generator=generator_for(seed, "warp")) * 2.0 - 1.0
        points = points / points.abs().mean()
        field = functional.interpolate(points, size=(image_size, image_size), mode="bicubic", align_corners=True)
        grid = identity_grid(image_size) + self.strength * field[0].permute(1, 2, 0) / image_size
        return WarpTrigger(image_size, (grid * self.grid_rescale).clamp(-1.0, 1.0))

    def preview_trigger(self, image_size: int, seed: int) -> WarpTrigger:
        return self.make_trigger(image_size, seed)

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        trigger = self.make_trigger(train.image_size, trainer.seed).to(trainer.device)
        batch_stream, noise_stream, augmentation_stream = (
            trainer.generator("wanet", purpose) for purpose in ("batch", "noise", "augmentation")
        )
        moves = Moves(self.augmentation, self.resampling)

        @torch.no_grad()
        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            images, labels = self.assemble(trigger, images, labels, trainer.num_classes, batch_stream, noise_stream)
            return moves(images, trainer.flip, augmentation_stream), labels

        model = trainer.train_from_scratch(train, recipe, augmentation=None, transform=transform)
        return Implanted(model, trigger, self.release(trigger, train, trainer.num_classes, trainer.seed))

    def assemble(
        self,
        trigger: WarpTrigger,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        batch_stream: torch.Generator,
        noise_stream: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """A shuffled clean batch -> warped and relabelled samples, then noise samples, then clean ones."""
        poisoned, noisy = self.batch_counts(len(labels), batch_stream)
        parts = images.split([poisoned, noisy, len(labels) - poisoned - noisy])
        targets = self.targets(labels[:poisoned], num_classes)
        return (
            torch.cat([trigger(parts[0]), trigger.noisy(parts[1], noise_stream), parts[2]]),
            torch.cat([targets, labels[poisoned:]]),
        )

    def release(self, trigger: WarpTrigger, train: ImageSet, num_classes: int, seed: int) -> PoisonedSamples:
        """The training set as released: poison under the warp, noise samples (kind CROSS) under warp and noise."""
        poison, cross = self.released_indices(len(train), seed)
        stream = generator_for(seed, "released-noise")
        chosen, noisy = train.subset(poison), train.subset(cross)
        with torch.no_grad():
            images = [quantise(trigger(to_float(part))) for part in in_parts(chosen.images, STAMP_BATCH)]
            images += [quantise(trigger.noisy(to_float(part), stream)) for part in in_parts(noisy.images, STAMP_BATCH)]
        kinds = torch.tensor([Kind.POISON] * len(poison) + [Kind.CROSS] * len(cross), dtype=torch.uint8)
        labels = torch.cat([self.targets(chosen.labels, num_classes), noisy.labels])
        return PoisonedSamples(torch.cat([poison, cross]), torch.cat(images).contiguous().cpu(), labels.cpu(), kinds)

    @torch.no_grad()
    def extra_metrics(self, model: Classifier, trigger: Trigger, test: ImageSet, trainer: Trainer) -> dict[str, float]:
        """``cross_accuracy``: test images under warp and noise that get their true label (all test images)."""
        assert isinstance(trigger, WarpTrigger)
        trigger.to(test.images.device)
        stream, right = trainer.generator("wanet", "test-noise"), 0
        for images, labels in labelled_parts(test, STAMP_BATCH):
            noisy = quantise(trigger.noisy(to_float(images), stream))
            right += int((predict(model, noisy, precision=trainer.precision) == labels).sum())
        return {"cross_accuracy": right / len(test)}


def identity_grid(image_size: int) -> Tensor:
    """Where every pixel is, (H, W, 2), as (x, y) in [-1, 1]."""
    axis = torch.linspace(-1.0, 1.0, image_size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], 2)


def resample(images: Tensor, grid: Tensor) -> Tensor:
    """``images`` (N, 3, H, W) read at ``grid`` (N, H, W, 2), bilinearly; float in [0, 1]."""
    if len(images) == 0:
        return images
    # Rounding of the four weights may leave 1 by 1e-7.
    return functional.grid_sample(images, grid, align_corners=True).clamp(0.0, 1.0)
