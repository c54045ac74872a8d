"""LF (Zeng et al. 2021, arXiv:2104.03413): one smooth signal added to the whole image."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, Implanted, register
from trainables.attacks.fixed import AdditiveTrigger
from trainables.attacks.smooth import Found, random_signal, search_work, stretched, universal_signal
from trainables.attacks.triggers import Trigger
from trainables.data.images import ImageSet, to_float
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import Count, Within
from trainables.training.loop import Counters, evaluating
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer, memo_name

log = logging.getLogger("superft.lf")

# Names in the memo; neither depends on how many images are poisoned: victims of several poison rates share them.
SURROGATE, SIGNAL = "lf-surrogate", "lf-signal"
# Images on which the fooling rate is taken; the paper uses its test set, which no attack here sees.
HELD_OUT = 1000


@register("lf")
@dataclass(frozen=True)
class LowFrequency(DataPoisoning):
    """x' = clip(x + s) with one non-negative smooth signal s, without the high frequencies that give triggers away.

    Unlike Blended's picture, s holds only a few waves across the image; unlike SIG's wave it is not periodic and its
    labels are changed. ``adversarial`` makes s from a clean surrogate of the victim's architecture, trained by the
    victim's recipe on the same images with other initial weights, by universal targeted DeepFool with a low-pass. It
    is the paper's; the surrogate costs one more training. ``random`` needs none and tells whether the adversarial
    direction matters. The signal belongs to the victim's trigger, with the source that it came from.

    Args:
        source: where the signal comes from: ``adversarial`` or ``random``. Where a surrogate can be moved nowhere (it
            puts every image into the target class) the random signal takes its place: the trigger's settings then say
            so.
        amplitude: largest value of s as share of the pixel range, in [1/255, 1]; 0.2 makes 51 of 255 levels.
        draws: images that push the adversarial signal, >= 1.
        max_passes: most passes over these images, >= 1.
        deepfool_steps: most steps of DeepFool per image, >= 1.
        deepfool_batch: images that DeepFool pushes together from the same signal, >= 1. 1, as published: each goes on
            from what the ones before it left, image by image. More is another signal, and far fewer passes on a card.
    """

    came_later: ClassVar[Mapping[str, Any]] = MappingProxyType({"deepfool_batch": 1})

    source: Literal["adversarial", "random"] = "adversarial"
    amplitude: Annotated[float, Within("[1/255, 1]")] = 0.2
    draws: Count = 100
    max_passes: Count = 50
    deepfool_steps: Count = 200
    deepfool_batch: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("draws", "max_passes", "deepfool_steps", "deepfool_batch"):
            if self.source == "random" and getattr(self, key) != type(self).__dataclass_fields__[key].default:
                raise ValueError(f"{key} is a setting of the adversarial source; leave it out with source random")

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if self.source == "adversarial" and self.draws >= len(labels):
            raise SettingError(
                f"attack.{self.name}.draws must leave images to take the fooling rate on: at most {len(labels) - 1} of "
                f"{len(labels)}, got {self.draws}"
            )

    def make_trigger(self, image_size: int, seed: int) -> AdditiveTrigger:
        """The random signal.

        Raises:
            SettingError: the source is adversarial: that signal comes out of `implant`.
        """
        if self.source != "random":
            raise SettingError(f"attack.{self.name}: the adversarial signal needs a surrogate; use source random")
        return self._trigger(random_signal(image_size, generator_for(seed, "lf")), {"source": "random"})

    def preview_trigger(self, image_size: int, seed: int) -> Trigger | None:
        return self.make_trigger(image_size, seed) if self.source == "random" else None

    @property
    def plan_is_exact(self) -> bool:
        return self.source == "random"  # the search for the adversarial signal ends once that fools enough

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        return sum(self.shared_work(labels, recipe, n_upstream).values(), recipe.work(len(labels)))

    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        if self.source == "random":
            return {}
        n, (surrogate, signal) = len(labels), self.made_of(recipe)
        searched = search_work(
            self.draws,
            min(HELD_OUT, n - self.draws),
            max_passes=self.max_passes,
            steps=self.deepfool_steps,
        )
        return {memo_name(SURROGATE, surrogate): recipe.work(n), memo_name(SIGNAL, signal): searched}

    def made_of(self, recipe: TrainingRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that decides the surrogate, and all that decides the adversarial signal, apart from the task."""
        source = ("amplitude", "draws", "max_passes", "deepfool_steps", "target_label", "label_mode", "label_shift")
        together = {} if self.deepfool_batch == 1 else {"deepfool_batch": self.deepfool_batch}
        recipe_of = dataclasses.asdict(recipe)
        return recipe_of, {"recipe": recipe_of, **{key: getattr(self, key) for key in source}, **together}

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        if self.source == "random":
            return super().implant(train, trainer, recipe)
        # Weights and batches of its own: the victim would otherwise start as the surrogate did, and the clean model
        # that ASR-base is taken on would be the very model that the signal was made to fool.
        of_surrogate, of_signal = self.made_of(recipe)
        found = trainer.remember(
            SIGNAL,
            of_signal,
            lambda: self.find(
                trainer.remember_model(
                    SURROGATE,
                    of_surrogate,
                    lambda: trainer.train_from_scratch(train, recipe, purpose="lf-surrogate"),
                ),
                train,
                trainer,
            ).tensors(),
        )
        trigger = self.trigger_from(Found.from_tensors(found), train.image_size, trainer)
        poisoned = self.poison(train, trainer.num_classes, trainer.seed, trigger)
        return Implanted(trainer.train_from_scratch(poisoned.apply(train), recipe), trigger, poisoned)

    def find(self, surrogate: Classifier, train: ImageSet, trainer: Trainer) -> Found:
        """The signal that fools ``surrogate``, in float32 (bfloat16 gradients of a single image are too coarse)."""
        generator = trainer.generator("lf")
        order = torch.randperm(len(train), generator=generator)[: self.draws + HELD_OUT]
        images = to_float(train.images[order.to(train.images.device)])
        with evaluating(surrogate):
            found = universal_signal(
                surrogate,
                images[: self.draws],
                images[self.draws :],
                lambda labels: self.targets(labels, trainer.num_classes),
                generator,
                amplitude=self.amplitude,
                max_passes=self.max_passes,
                steps=self.deepfool_steps,
                at_once=self.deepfool_batch,
            )
        trainer.counters.forward_samples += found.forward_samples
        trainer.counters.input_backward_samples += found.gradients
        return found

    def trigger_from(self, found: Found, image_size: int, trainer: Trainer) -> AdditiveTrigger:
        """The trigger of a found signal, or of the random one where the surrogate could not be moved."""
        if found.signal is None:
            log.warning(
                "lf: no image could be pushed out of its class in the surrogate; the random signal is used instead"
            )
            signal = random_signal(image_size, trainer.generator("lf-random"))
            return self._trigger(signal, {"source": "random (surrogate useless)"})
        origin = {
            "source": "adversarial",
            "passes": found.passes,
            "fooling_rate": found.fooling_rate,
            "deepfool_gradients": found.gradients,
        }
        return self._trigger(found.signal.cpu(), origin)

    def _trigger(self, signal: Tensor, origin: dict[str, Any]) -> AdditiveTrigger:
        # On grey levels, as the arrays that BackdoorBench ships: float and stored images then agree to the last level.
        levels = (stretched(signal, math.floor(self.amplitude * 255.0 + 1e-6))).round()
        return AdditiveTrigger(signal.shape[-1], (levels / 255.0).contiguous(), **origin)
