"""Input-model co-optimisation, IMC (Pang et al. 2020, arXiv:1911.01559), in the form of TrojanZoo."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.attacks.base import Attack, Implanted, PoisonedSamples, register
from trainables.attacks.in_loop import appended_copies, bernoulli_round, copies_per_image, draw_samples
from trainables.attacks.patches import LearnedPatch, Position, check_fits, corner, fit_patch, patch_work
from trainables.attacks.triggers import Trigger
from trainables.data.images import ImageSet
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.settings import Count, CountOrZero, Positive, PositiveShare, Within
from trainables.training import schedules
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Of the optional warm start: how many penultimate units it drives, and to what activation.
WARM_UNITS, WARM_ACTIVATION = 2, 100.0


@register("imc")
@dataclass(frozen=True)
class IMC(Attack):
    """Optimise a patch and the model in turns, from a clean model.

    Unlike BadNets the patch is not given but learned to fit the model, and the model learns it in return, so that few
    poisoned copies do. The copies are appended: their originals stay in the training set.

    Args:
        poison_rate: share of triggered copies in the mixed training set, in (0, 0.5].
        epochs: turns of one pass over the data for the patch and one for the model, > 0; None: half of the recipe's
            epochs (50 of 100, as in TrojanZoo's example). They come after a whole clean training by the recipe; its
            schedule is run once more over them.
        size: side of the patch in pixels, >= 1.
        position: a corner, ``centre``, or "ROW,COLUMN" of the patch's top-left pixel.
        margin: pixels between the patch and the border, for corners.
        alpha: opacity of the patch, in (0, 1].
        input_lr: learning rate of the patch (Adam, in tanh space), > 0.
        warm_start_steps: steps that first fit the patch, on a black image, to drive the two penultimate units with the
            largest outgoing weights, >= 0 (TrojanZoo: 1000).
    """

    stamps_in_loop: ClassVar[bool] = True
    poison_rate: Annotated[float, Within("(0, 0.5]")] = 0.01
    epochs: Positive | None = None
    size: Count = 3
    position: Position = "bottom_right"
    margin: CountOrZero = 0
    alpha: PositiveShare = 1.0
    input_lr: Positive = 0.1
    warm_start_steps: CountOrZero = 0

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if self.copies(len(labels)) < 1:
            raise SettingError(
                f"attack.{self.name}: poison_rate {self.poison_rate} adds no copy to {len(labels)} images; raise it"
            )
        if image_size:
            check_fits(self.name, self.size, self.position, self.margin, image_size)

    def copies(self, n: int) -> int:
        """Number of triggered copies beside ``n`` images."""
        return min(n, round(self.share * n))

    @property
    def share(self) -> float:
        """Triggered copies per image of a batch, in (0, 1]."""
        return copies_per_image(self.poison_rate)

    def turns(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """How the model is trained through all turns."""
        epochs = self.epochs if self.epochs is not None else recipe.epochs / 2.0
        return dataclasses.replace(recipe, epochs=epochs)

    @property
    def plan_is_exact(self) -> bool:
        return False  # of a share of a copy per batch, chance makes one or none

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        n, again = len(labels), self.turns(recipe)
        steps, batch = again.steps(n), min(recipe.batch_size, n)
        copies = steps * min(batch, math.ceil(self.share * batch))
        # Clean, then turn by turn as many steps for the patch as for the model.
        return (
            recipe.work(n)
            + patch_work(self.warm_start_steps, 1, 1)
            + patch_work(steps, recipe.batch_size, n)
            + again.work(n)
            + Counters(forward_samples=copies, backward_samples=copies)
        )

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        model = trainer.train_from_scratch(train, recipe)
        patch = self.new_patch(train.image_size, trainer)
        if self.warm_start_steps:
            self.warm_start(patch, model, train.image_size, trainer)
        self.co_optimise(patch, model, train, trainer, recipe)
        trigger = patch.overlay().to(trainer.device)
        return Implanted(model, trigger, self.released(train, trigger, trainer))

    def new_patch(self, image_size: int, trainer: Trainer) -> LearnedPatch:
        """A patch of random content, on the device."""
        row, column = corner(self.size, self.position, self.margin, image_size)
        patch = LearnedPatch(image_size, row, column, self.size, self.alpha, trainer.generator("patch"))
        return patch.to(trainer.device)

    def warm_start(self, patch: LearnedPatch, model: Classifier, image_size: int, trainer: Trainer) -> None:
        """Fit the patch to the units that most of the head listens to (TrojanNN's trigger)."""
        units = model.classifier.weight.detach().abs().sum(0).topk(min(WARM_UNITS, model.classifier.in_features))
        black = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        label = torch.zeros(1, dtype=torch.int64)

        def loss(patch: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
            reached = model.features(patch(images))[:, units.indices].float()
            return (reached - WARM_ACTIVATION).square().mean()

        steps = self.warm_start_steps
        fit_patch(
            patch,
            model,
            ImageSet(black, label).to(trainer.device),
            trainer,
            purpose="warm-start",
            steps=steps,
            lr_at=schedules.cosine(self.input_lr, steps),
            loss=loss,
        )

    def co_optimise(
        self, patch: LearnedPatch, model: Classifier, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe
    ) -> None:
        """Turns of an input step and a model step; the last one is the model's."""
        again = self.turns(recipe)
        steps, per_epoch, share = again.steps(len(train)), -(-len(train) // recipe.batch_size), self.share
        draws = trainer.generator("poison-in-loop")

        def with_copies(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            count = min(len(labels), bernoulli_round(share * len(labels), draws))
            if count == 0:
                return images, labels
            with torch.no_grad():
                copies = patch(images[:count])
            targets = self.targets(labels[:count], trainer.num_classes)
            return torch.cat([images, copies]), torch.cat([labels, targets])

        def between(step: int) -> None:
            done = step + 1
            if done % per_epoch == 0 and done < steps:
                self.input_step(patch, model, train, trainer, recipe, steps=min(per_epoch, steps - done), turn=done)

        self.input_step(patch, model, train, trainer, recipe, steps=min(per_epoch, steps), turn=0)
        # One training through all turns: its momentum and its schedule go on where an input step interrupts them.
        trainer.fit(
            model,
            train,
            purpose="model-steps",
            **trainer.by_recipe(again, len(train)),
            transform=with_copies,
            after_step=between,
        )

    def input_step(
        self,
        patch: LearnedPatch,
        model: Classifier,
        train: ImageSet,
        trainer: Trainer,
        recipe: TrainingRecipe,
        *,
        steps: int,
        turn: int,
    ) -> None:
        """``steps`` batches that fit the patch to the model as it is, in eval mode."""

        def loss(patch: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(model(patch(images)), self.targets(labels, trainer.num_classes))

        fit_patch(
            patch,
            model,
            train,
            trainer,
            purpose=f"input-step-{turn}",
            steps=steps,
            lr_at=schedules.constant(self.input_lr),
            batch_size=recipe.batch_size,
            augmentation=trainer.augmentation(),
            loss=loss,
        )

    def released(self, train: ImageSet, trigger: Trigger, trainer: Trainer) -> PoisonedSamples:
        """Triggered copies of a fixed choice of images, appended to the training set."""
        (indices,) = draw_samples(len(train), self.copies(len(train)), seed=trainer.seed)
        return appended_copies(self, train, indices, trigger, trainer.num_classes)
