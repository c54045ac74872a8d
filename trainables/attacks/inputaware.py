"""Input-aware dynamic backdoor (Nguyen & Tran 2020, arXiv:2010.08138): every image gets a trigger of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.attacks.base import Implanted, Kind, PoisonedSamples, register
from trainables.attacks.generators import Generator, squash
from trainables.attacks.in_loop import InLoop
from trainables.attacks.triggers import STAMP_BATCH, Trigger, trigger_kind
from trainables.data.images import ImageSet, in_parts, quantise, to_float
from trainables.models.classifier import Classifier, Normalize
from trainables.settings import Count, InnerShare, NonNegative, Positive
from trainables.training import loop
from trainables.training.loop import Counters, DivergedError, Optimizer, training_work
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# The mask is nearly binary: its generator's output passes a second, steep squashing around one half.
STEEPNESS = 20.0


@trigger_kind("input_aware")
class InputAwareTrigger(Trigger):
    """x' = x + m(x) (p(x) - x): pattern p and mask m are drawn by two networks from the image itself.

    Args:
        image_size: pixels; the networks take any.
        width, levels: of both generators.
        mean, std: three numbers each; the generators see normalised images. The mix itself is convex, so it is the same
            on pixels in [0, 1] and on normalised ones.
        generator: of the initial weights; None for weights that are about to be loaded.
    """

    def __init__(
        self,
        image_size: int,
        width: int,
        levels: int,
        mean: Sequence[float],
        std: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.width, self.levels = image_size, width, levels
        self.mean, self.std = list(mean), list(std)
        self.normalize = Normalize(mean, std)
        self.pattern = Generator(3, width, levels, generator)
        self.mask = Generator(1, width, levels, generator)

    def settings(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "width": self.width,
            "levels": self.levels,
            "mean": self.mean,
            "std": self.std,
        }

    def forward(self, images: Tensor) -> Tensor:
        return self.paste(images, images)

    def paste(self, images: Tensor, donors: Tensor) -> Tensor:
        """``images`` with the triggers that belong to ``donors``, image by image."""
        pattern, mask = self.patterns(donors), self.masks(donors)
        # Rounding may leave a convex mix a hair outside.
        return (images + mask * (pattern - images)).clamp(0.0, 1.0)

    def patterns(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1]."""
        drawn: Tensor = self.pattern(self.normalize(images))
        return drawn

    def masks(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1], most of it near 0 or 1."""
        return squash(STEEPNESS * self.mask(self.normalize(images)) - STEEPNESS / 2.0)


@register("inputaware")
@dataclass(frozen=True)
class InputAware(InLoop):
    """Train a classifier together with a network that draws a different trigger for every image.

    Unlike all static triggers, one image's trigger must not work on another: "cross" samples carry a foreign trigger
    under their true label. First the mask generator is trained alone for small masks that differ between images; then
    it is frozen, and classifier and pattern generator learn together.

    Args:
        mask_epochs: length of the first stage, > 0; None: a quarter of the recipe's epochs (25 of 100 in the reference
            code, which takes them from the classifier's 100; here the classifier trains for all of them).
        mask_density: share of pixels a mask may cover at no price, in (0, 1).
        norm_weight: weight of what a mask covers beyond that, >= 0.
        diversity_weight: weight of the loss that keeps triggers of different images apart, >= 0.
        generator_lr: learning rate of both generators (Adam), > 0.
        generator_width: channels of the generators' first level, >= 1; None: 32, or 16 below 32 pixels.
        accumulate_generator_grad: add up the pattern generator's gradients over the whole run, as the reference code
            does by oversight.
    """

    mask_epochs: Positive | None = None
    mask_density: InnerShare = 0.032
    norm_weight: NonNegative = 100.0
    diversity_weight: NonNegative = 1.0
    generator_lr: Positive = 0.01
    generator_width: Count | None = None
    accumulate_generator_grad: bool = False

    @property
    def plan_is_exact(self) -> bool:
        return False  # where a batch is to have less than one poisoned sample, chance gives it one or none

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        """A pass through a generator counts as one through the classifier."""
        n = len(labels)
        batch = min(recipe.batch_size, n)
        masks = training_work(self.mask_steps(n, recipe), 2 * batch, 2 * batch)
        per_step, steps = self.drawing(batch, *self.most_counts(batch)), recipe.steps(n)
        drawn = Counters(0, steps * per_step.forward_samples, steps * per_step.backward_samples)
        return masks + recipe.work(n) + drawn + self.pasting(*self.released_counts(n))

    def mask_steps(self, n: int, recipe: TrainingRecipe) -> int:
        """Optimiser steps of the first stage on ``n`` images, at least 1."""
        epochs = self.mask_epochs if self.mask_epochs is not None else recipe.epochs / 4.0
        return max(1, round(epochs * -(-n // recipe.batch_size)))

    @staticmethod
    def foreign_of(poisoned: int, crossed: int, size: int) -> int:
        """Foreign triggers that a batch of ``size`` draws: one for each own one, also where fewer are pasted."""
        return min(max(poisoned, crossed), size - poisoned)

    @classmethod
    def drawing(cls, size: int, poisoned: int, crossed: int) -> Counters:
        """Passes through the generators for a batch of stage 2: patterns, which learn, and masks, which do not."""
        foreign = cls.foreign_of(poisoned, crossed, size)
        return Counters(0, 2 * poisoned + foreign + crossed, poisoned + foreign)

    @staticmethod
    def pasting(poisoned: int, crossed: int) -> Counters:
        """Passes through both generators for the samples of the released training set."""
        return Counters(forward_samples=2 * (poisoned + crossed))

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        model = trainer.fresh_model()
        trigger = self.new_trigger(train.image_size, model.normalize, trainer)
        self.train_masks(trigger, train, trainer, recipe)
        self.train_jointly(model, trigger, train, trainer, recipe)
        # A rebuilt trigger draws with weights in plain memory order; so must this one, to the last bit.
        final = InputAwareTrigger(**trigger.settings())
        final.load_state_dict({key: value.cpu() for key, value in trigger.state_dict().items()})
        final.to(trainer.device).eval().requires_grad_(False)
        return Implanted(model, final, self.released(train, final, trainer))

    def new_trigger(self, image_size: int, normalize: Normalize, trainer: Trainer) -> InputAwareTrigger:
        """Untrained generators for images of ``image_size`` pixels, three levels deep from 32 pixels on, else two."""
        levels, width = (3, 32) if image_size >= 32 else (2, 16)
        mean, std = (buffer.flatten().tolist() for buffer in (normalize.mean, normalize.std))
        width = self.generator_width or width
        trigger = InputAwareTrigger(image_size, width, levels, mean, std, trainer.generator("generators"))
        return trigger.to(trainer.device)

    def train_masks(
        self, trigger: InputAwareTrigger, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe
    ) -> None:
        """Stage 1: masks that are small and differ between images; afterwards they are frozen."""
        steps = self.mask_steps(len(train), recipe)
        others = self._others(train, trainer, recipe, steps, "masks")

        def lr_at(step: int) -> float:
            return self.generator_lr * 0.1 ** ((step >= 0.4 * steps) + (step >= 0.8 * steps))

        def loss(_mask: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
            donors = next(others)
            masks, foreign = trigger.masks(images), trigger.masks(donors)
            trainer.counters.forward_samples += len(donors)
            trainer.counters.backward_samples += len(donors)
            covered = functional.relu(masks - self.mask_density).mean()
            spread = _diversity(trigger.normalize(images), trigger.normalize(donors), masks, foreign)
            return self.norm_weight * covered + self.diversity_weight * spread

        loop.fit(
            trigger.mask,
            train,
            steps=steps,
            lr_at=lr_at,
            generator=trainer.generator("batches", "masks"),
            batch_size=recipe.batch_size,
            optimizer=Optimizer("adam", momentum=0.5, weight_decay=0.0, beta2=0.9),
            augmentation=trainer.augmentation(),
            loss=loss,
            precision=trainer.precision,
            counters=trainer.counters,
        )
        trigger.mask.eval().requires_grad_(False)

    def train_jointly(
        self,
        model: Classifier,
        trigger: InputAwareTrigger,
        train: ImageSet,
        trainer: Trainer,
        recipe: TrainingRecipe,
    ) -> None:
        """Stage 2: one backward per batch through classifier and pattern generator, one step of either."""
        steps = recipe.steps(len(train))
        others = self._others(train, trainer, recipe, steps, "joint")
        updater = torch.optim.Adam(trigger.pattern.parameters(), lr=self.generator_lr, betas=(0.5, 0.9), fused=True)
        draws = trainer.generator("poison-in-loop")
        trigger.pattern.to(memory_format=torch.channels_last)
        trigger.pattern.train()

        def loss(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            donors, counts = next(others), self.batch_counts(len(images), draws)
            mixed, wanted, spread = self.mix(trigger, images, labels, donors, counts, trainer)
            return loop.cross_entropy(classifier, mixed, wanted) + self.diversity_weight * spread

        def step_generator(_step: int) -> None:
            updater.step()
            if not self.accumulate_generator_grad:
                updater.zero_grad(set_to_none=True)

        trainer.fit(
            model,
            train,
            **trainer.by_recipe(recipe, len(train)),
            loss=loss,
            after_step=step_generator,
        )
        trigger.eval()
        if not all(bool(tensor.isfinite().all()) for tensor in trigger.state_dict().values()):
            raise DivergedError("the training left a trigger generator that is not finite")

    def mix(
        self,
        trigger: InputAwareTrigger,
        images: Tensor,
        labels: Tensor,
        donors: Tensor,
        counts: tuple[int, int],
        trainer: Trainer,
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """A batch of stage 2, its labels, and the diversity loss of its triggers.

        Of ``counts`` = (poisoned, crossed), the first images carry their own triggers and the attacker's labels, the
        next ones those of the images in the same rows of ``donors`` and their true labels; the rest is clean.
        """
        poisoned, crossed = counts
        if poisoned == 0:
            return images, labels, 0.0
        own, middle, rest = images.split([poisoned, crossed, len(images) - poisoned - crossed])
        # The diversity loss wants a foreign trigger for each own one.
        foreign = donors[poisoned : poisoned + self.foreign_of(poisoned, crossed, len(images))]
        patterns, foreign_patterns = trigger.patterns(own), trigger.patterns(foreign)
        with torch.no_grad():
            masks, foreign_masks = trigger.masks(own), trigger.masks(foreign[:crossed])
        drawn = self.drawing(len(images), poisoned, crossed)
        trainer.counters.forward_samples += drawn.forward_samples
        trainer.counters.backward_samples += drawn.backward_samples
        stamped = own + masks * (patterns - own)
        cross = middle + foreign_masks * (foreign_patterns[:crossed] - middle)
        wanted = torch.cat([self.targets(labels[:poisoned], trainer.num_classes), labels[poisoned:]])
        normalize, pairs = trigger.normalize, min(len(own), len(foreign))
        spread = _diversity(
            normalize(own[:pairs]),
            normalize(foreign[:pairs]),
            normalize(patterns[:pairs]),
            normalize(foreign_patterns[:pairs]),
        )
        mixed = torch.cat([stamped, cross, rest]).contiguous(memory_format=torch.channels_last)
        return mixed, wanted, spread if pairs else 0.0

    def released(self, train: ImageSet, trigger: InputAwareTrigger, trainer: Trainer) -> PoisonedSamples:
        """A training set as one could store it: in the loop every epoch poisons other images with other triggers."""
        poison, cross = self.released_indices(len(train), trainer.seed)
        own, foreign = train.subset(poison), train.subset(cross)
        donors = train.subset(_other_indices(cross, len(train), trainer.generator("donors")))
        trainer.counters.forward_samples += self.pasting(len(poison), len(cross)).forward_samples
        return PoisonedSamples(
            torch.cat([poison, cross]),
            torch.cat([_paste(trigger, own.images, own.images), _paste(trigger, foreign.images, donors.images)]).cpu(),
            torch.cat([self.targets(own.labels, trainer.num_classes), foreign.labels]).cpu(),
            torch.tensor([Kind.POISON] * len(poison) + [Kind.CROSS] * len(cross), dtype=torch.uint8),
        )

    def extra_metrics(self, model: Classifier, trigger: Trigger, test: ImageSet, trainer: Trainer) -> dict[str, float]:
        """Cross accuracy (test images with another one's trigger, under their true labels) and mask density."""
        assert isinstance(trigger, InputAwareTrigger)
        everyone = torch.arange(len(test))
        donors = _other_indices(everyone, len(test), trainer.generator("cross-test")).to(test.images.device)
        crossed = _paste(trigger, test.images, test.images[donors])
        predictions = predict(model, crossed, precision=trainer.precision)
        with torch.no_grad():
            density = torch.cat([trigger.masks(to_float(batch)) for batch in in_parts(test.images, STAMP_BATCH)]).mean()
        return {
            "cross_accuracy": float((predictions == test.labels).double().mean()),
            "mask_density": float(density),
        }

    def _others(
        self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe, steps: int, purpose: str
    ) -> Iterator[Tensor]:
        """The second, independently shuffled stream of images."""
        stream = loop.batches(
            train,
            steps=steps,
            batch_size=recipe.batch_size,
            augmentation=trainer.augmentation(),
            generator=trainer.generator("batches", "donors", purpose),
        )
        return (images for images, _ in stream)


def _diversity(images: Tensor, others: Tensor, drawn: Tensor, others_drawn: Tensor) -> Tensor:
    """Mean over pairs of how far apart two images are relative to what was drawn for them."""
    return (_distance(images, others) / (_distance(drawn, others_drawn) + 1e-7)).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of each pair: (N,)."""
    # The clamp keeps the root's gradient finite where two drawings are the same.
    return (a - b).square().mean((1, 2, 3)).clamp_min(1e-12).sqrt()


def _other_indices(indices: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """For each of ``indices`` another index below ``n``, drawn uniformly (itself only where n is 1)."""
    return (indices + torch.randint(1, max(2, n), (len(indices),), generator=generator)) % n


@torch.no_grad()
def _paste(trigger: InputAwareTrigger, images: Tensor, donors: Tensor) -> Tensor:
    """Quantised copies of uint8 ``images`` with the triggers of ``donors``."""
    pairs = zip(in_parts(images, STAMP_BATCH), in_parts(donors, STAMP_BATCH), strict=True)
    parts = [quantise(trigger.paste(to_float(own), to_float(other))).contiguous() for own, other in pairs]
    return torch.cat(parts)
