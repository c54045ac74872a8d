"""Grond (Xu et al. 2025, arXiv:2501.05928): a clean-label perturbation, trained in so that no channel stands out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trainables.attacks.base import DataPoisoning, Implanted, register
from trainables.attacks.fixed import AdditiveTrigger
from trainables.attacks.patches import frozen, patch_work
from trainables.attacks.triggers import Trigger
from trainables.data.images import ImageSet
from trainables.models.channels import ConvNorm, batch_norms, lipschitz_bounds, outliers, trace_convolutions
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.settings import Count, NonNegative, PositiveShare, Within
from trainables.training import loop
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer, memo_name

# Names in the memo; neither depends on what is poisoned or levelled, so that victims that differ in that share them.
SURROGATE, SIGNAL = "grond-surrogate", "grond-signal"


@register("grond")
@dataclass(frozen=True)
class Grond(DataPoisoning):
    """Add one small perturbation that already fools clean models to images of the target class, and level channels.

    Like `sig` it poisons the target class alone and changes no label, but its signal is not chosen: universal targeted
    PGD makes it against a clean surrogate of the victim's architecture, trained by the victim's recipe on the same
    images with other initial weights. So a clean model obeys it too, to some degree (``asr_base``), and after a perfect
    repair the success rate is that, not 0.

    The attacker owns the training. After every epoch, and after the last step, each channel whose Lipschitz bound is
    beyond mean + u std of its layer, which is what `clp` prunes, gets the mean scale and shift of the layer
    (adversarial backdoor injection). Otherwise training is honest.

    Published values are those of the authors' code on CIFAR-10 (ResNet-18, target class 2, 200 epochs), unless stated.

    Args:
        class_share: poisoned share of the target class where neither ``poison_rate`` nor ``poison_count`` is given, in
            (0, 1]. Published: 0.5, which is 0.05 of CIFAR-10. Labels changed (``clean_label`` false, the dirty-label
            variant): as many images, of any class.
        poison_rate: share of the *whole* training set; None: by ``class_share``.
        epsilon: largest change of a pixel as share of the pixel range, in [1/255, 1], rounded down to whole grey
            levels. Published: 8/255.
        upgd_steps: batches that make the perturbation, >= 1. Published: 500.
        upgd_batch: images in each, >= 1 (at most all). Published: 256.
        upgd_step: length of a step as share of ``epsilon``, in (0, 1]. Published: 0.2.
        u: standard deviations above the mean of its layer from which a channel is levelled, >= 0; None: none is, the
            training is honest. Published: 3. A layer of n channels never has one beyond (n - 1) / sqrt(n) standard
            deviations: at 3 only layers of 11 channels or more can have any.
    """

    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "label_mode": {"clean_label": False},
        "label_shift": {"clean_label": False, "label_mode": "all_to_all"},
        "exclude_target": {"clean_label": False},
    }

    poison_rate: PositiveShare | None = None  # type: ignore[assignment]  # the share of a class is what is published
    clean_label: bool = True
    class_share: PositiveShare = 0.5
    epsilon: Annotated[float, Within("[1/255, 1]")] = 8 / 255
    upgd_steps: Count = 500
    upgd_batch: Count = 256
    upgd_step: PositiveShare = 0.2
    u: NonNegative | None = 3.0

    def check_model(self, model: Classifier) -> None:
        if self.u is not None and not batch_norms(model):
            raise SettingError(
                f"attack.{self.name}.u levels channels of BatchNorm layers and this model has none; set it to null or "
                "use a model with BatchNorm (preact_resnet18, for one)"
            )

    def planned(self, labels: Tensor) -> int:
        if self.poison_rate is not None or self.poison_count is not None:
            return super().planned(labels)
        # At least one: the rounding of a tiny class is no wish to leave it alone.
        return max(1, round(self.class_share * int((labels == self.target_label).sum())))

    def make_trigger(self, image_size: int, seed: int) -> AdditiveTrigger:
        """None can be made before the surrogate is there (SettingError); `implant` makes it."""
        raise SettingError(f"attack.{self.name}: the perturbation needs a surrogate and comes out of the attack")

    def preview_trigger(self, image_size: int, seed: int) -> Trigger | None:
        return None

    def made_of(self, recipe: TrainingRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that decides the surrogate, and all that decides the perturbation, apart from the task."""
        source = ("epsilon", "upgd_steps", "upgd_batch", "upgd_step", "target_label", "label_mode", "label_shift")
        recipe_of = dataclasses.asdict(recipe)
        return recipe_of, {"recipe": recipe_of, **{key: getattr(self, key) for key in source}}

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        shared = sum(self.shared_work(labels, recipe, n_upstream).values(), Counters())
        # Levelling asks once, by one image, which layers are pairs.
        return shared + recipe.work(len(labels)) + Counters(forward_samples=0 if self.u is None else 1)

    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        n, (surrogate, signal) = len(labels), self.made_of(recipe)
        return {
            memo_name(SURROGATE, surrogate): recipe.work(n),
            memo_name(SIGNAL, signal): patch_work(self.upgd_steps, self.upgd_batch, n),
        }

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        self.check_model(trainer.fresh_model())  # refused before the trainings, not after
        of_surrogate, of_signal = self.made_of(recipe)
        surrogate = trainer.remember_model(
            SURROGATE, of_surrogate, lambda: trainer.train_from_scratch(train, recipe, purpose="grond-surrogate")
        )
        found = trainer.remember(SIGNAL, of_signal, lambda: {"signal": self.perturbation(surrogate, train, trainer)})
        trigger = AdditiveTrigger(train.image_size, found["signal"].cpu())
        poisoned = self.poison(train, trainer.num_classes, trainer.seed, trigger)
        model = self.train_levelled(poisoned.apply(train), trainer, recipe)
        return Implanted(model, trigger, poisoned, {"surrogate": surrogate})

    def perturbation(self, surrogate: Classifier, train: ImageSet, trainer: Trainer) -> Tensor:
        """The universal perturbation that sends most images to their targets in ``surrogate``, (3, H, W).

        On whole grey levels in units of the pixel range, so that float and stored images agree; no value is beyond
        ``epsilon``. Steps follow the sign of a batch's gradient, in float32, on images without augmentation.
        """
        delta = torch.zeros_like(train.images[0], dtype=torch.float32)
        batches = loop.batches(
            train,
            steps=self.upgd_steps,
            batch_size=self.upgd_batch,
            augmentation=None,
            generator=trainer.generator("grond", "upgd"),
        )
        with frozen(surrogate):
            for images, labels in batches:
                delta.requires_grad_(True)
                logits = surrogate((images + delta).clamp(0.0, 1.0))
                loss = functional.cross_entropy(logits, self.targets(labels, trainer.num_classes))
                (gradient,) = torch.autograd.grad(loss, delta)
                step = self.upgd_step * self.epsilon * gradient.sign()
                delta = (delta.detach() - step).clamp(-self.epsilon, self.epsilon)
                trainer.counters.forward_samples += len(labels)
                trainer.counters.input_backward_samples += len(labels)
        largest = int(self.epsilon * 255.0 + 1e-6)
        return (delta * 255.0).round().clamp(-largest, largest) / 255.0

    def train_levelled(self, data: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Classifier:
        """A new model trained by the recipe on ``data``, its channels levelled after every epoch and at the end."""
        if self.u is None:
            return trainer.train_from_scratch(data, recipe)
        model, limit = trainer.fresh_model(), self.u
        pairs = [pair for pair in trace_convolutions(model)[0] if pair.direct]
        trainer.counters.forward_samples += 1
        steps, per_epoch = recipe.steps(len(data)), -(-len(data) // recipe.batch_size)

        def after_step(step: int) -> None:
            if (step + 1) % per_epoch == 0 or step + 1 == steps:
                level(model, pairs, limit)

        trainer.fit(model, data, **trainer.by_recipe(recipe, len(data)), after_step=after_step)
        return model


@torch.no_grad()
def level(model: Classifier, pairs: Sequence[ConvNorm], u: float) -> Tensor:
    """Give channels that can amplify far more than the others of their layer its mean scale and shift, in place.

    The means are over the whole layer as it was, these channels included. `clp` sets both to 0 instead.

    Args:
        pairs: the layers that are looked at.
        u: standard deviations above the mean of the bounds, >= 0.

    Returns:
        How many channels were levelled: one number on the model's device, so that nobody waits for it.
    """
    norms = batch_norms(model)
    count = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)
    for pair in pairs:
        norm, chosen = norms[pair.norm], outliers(lipschitz_bounds(model, pair), u)
        for values in (norm.weight, norm.bias):
            values.copy_(torch.where(chosen, values.mean(), values))
        count += chosen.sum()
    return count
