"""SBL, sequential backdoor learning (Pham et al. 2024, arXiv:2407.14738): a backdoor that expects to be fine-tuned."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.attacks.badnets import BadNets
from trainables.attacks.base import Attack, Implanted, Kind, PoisonedSamples, register
from trainables.attacks.blended import Blended
from trainables.attacks.fisher import diagonal_fisher, drift
from trainables.attacks.in_loop import check_rate
from trainables.attacks.sig import SIG
from trainables.attacks.triggers import Trigger, stamp
from trainables.attacks.wanet import WaNet
from trainables.data.images import ImageSet, to_float
from trainables.machine.transfer import sent_ahead
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import Count, InnerShare, NonNegative, NormalisedBatch, Positive, PositiveShare
from trainables.training import loop, schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import BatchTransform, Counters, DivergedError, Optimizer, training_work
from trainables.training.recipes import TrainingRecipe
from trainables.training.schedules import CyclicSchedule, Phase
from trainables.training.sharpness import climb
from trainables.training.trainer import Trainer, memo_name

log = logging.getLogger("superft.sbl")

# Name in the memo of what all variants go on from, so that they differ by the second stage alone.
FIRST_STAGE = "sbl-backdoor"
# Of the paper's epochs: 150 for the backdoor, then 100 for the user.
USER_EPOCHS_SHARE = 100 / 150
# Feet of super-fine-tuning's triangle, and the lengths among which a repair's is drawn.
SFT_BASE, SFT_STEPS = 3e-4, (5, 10, 20)
# Term of the loss that keeps the second stage near the first: (model, images, logits) -> scalar.
Hold = Callable[[nn.Module, Tensor, Tensor], Tensor]


@register("sbl")
@dataclass(frozen=True)
class SequentialBackdoor(Attack):
    """Learn the backdoor first, then play the user: fine-tune on clean data while the backdoor's weights are held.

    Unlike all attacks that train once, the released weights already lie where a fine-tuner would take them, so that
    gentle fine-tuning moves them little. The first stage is the recipe's training with sharpness-aware steps, each
    sample stamped with a given probability in every step; the second is clean SGD at a small constant rate.

    ``sft_aware`` (ours, not the paper's) also prepares for super-fine-tuning: every few steps of the second stage a
    copy of the model is repaired for a moment by clean steps under a triangular rate, and the gradient of the
    backdoor's loss *there* is added here (first order: the repair itself is not differentiated). The attacker knows the
    family of schedules, not the defender's data.

    Args:
        trigger: the trigger of ``badnets`` (a patch of random colours), ``blended``, ``sig`` (20 grey levels, labels
            changed) or ``wanet`` (no noise mode), otherwise at their defaults.
        poison_rate: probability of a sample of the first stage to be stamped and relabelled, in (0, 1].
        user_share: share of the attacker's images that the second stage has, the first has the rest; in (0, 1). The
            paper's is 0.10 beside 0.85; its last 0.05 are the defender's, whose data is the study's business here.
        sam_rho: length of the sharpness-aware move, >= 0.
        variant: how the second stage holds the first: ``ewc`` (weights, by their Fisher information), ``anchoring``
            (mean squared distance of the outputs' probabilities), ``naive`` (not at all).
        weight: weight of that hold on the weights or outputs, >= 0; None: 1. Leave it out with ``naive``.
        fisher_on: the Fisher information is taken on the ``mixture`` of clean and stamped images that the first stage
            learned, or on ``clean`` ones, as the authors' code does (which does not protect the backdoor as such).
        fisher_samples: images of the first stage that this information is taken on, at most all, >= 1.
        user_epochs: passes of the second stage, > 0; None: two thirds of the recipe's (the paper's 100 after 150).
        user_lr: learning rate of the second stage, > 0.
        user_batch_size: images per step of the second stage, >= 2.
        sft_aware: also prepare the backdoor for super-fine-tuning, see above.
        sft_every: steps of the second stage between two looks at a momentary repair, >= 1.
        sft_steps: length of the momentary repair, >= 1; None: drawn from 5, 10, 20 each time.
        sft_lr_low, sft_lr_high: the peak rate of that repair is drawn log-uniformly between these, 0 < low <= high.
        sft_weight: weight of the gradient that is taken there, > 0.
    """

    stamps_in_loop: ClassVar[bool] = True
    # The hold acts from the second step of the second stage on.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weight": {"user_epochs": 4.0, "user_lr": 0.1},
        "fisher_on": {"user_epochs": 4.0, "user_lr": 0.1},
        "fisher_samples": {"user_epochs": 4.0, "user_lr": 0.1},
        "user_epochs": {"user_share": 0.5, "user_batch_size": 8},
        "sft_every": {"sft_aware": True, "user_epochs": 4.0},
        "sft_steps": {"sft_aware": True, "sft_every": 1, "user_epochs": 4.0},
        "sft_lr_low": {"sft_aware": True, "sft_every": 1, "user_epochs": 4.0},
        "sft_lr_high": {"sft_aware": True, "sft_every": 1, "user_epochs": 4.0},
        "sft_weight": {"sft_aware": True, "sft_every": 1, "user_epochs": 4.0},
    }

    trigger: Literal["badnets", "blended", "sig", "wanet"] = "badnets"
    poison_rate: PositiveShare = 0.1
    user_share: InnerShare = 2 / 19
    sam_rho: NonNegative = 0.05
    variant: Literal["ewc", "naive", "anchoring"] = "ewc"
    weight: NonNegative | None = None
    fisher_on: Literal["mixture", "clean"] = "mixture"
    fisher_samples: Count = 2000
    user_epochs: Positive | None = None
    user_lr: Positive = 1e-3
    user_batch_size: NormalisedBatch = 256
    sft_aware: bool = False
    sft_every: Count = 10
    sft_steps: Count | None = None
    sft_lr_low: Positive = 0.01
    sft_lr_high: Positive = 0.3
    sft_weight: Positive = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sft_lr_high < self.sft_lr_low:
            raise ValueError(f"sft_lr_high must be >= sft_lr_low ({self.sft_lr_low}), got {self.sft_lr_high}")
        if self.variant == "naive" and self.weight is not None:
            raise ValueError(f"weight is of a hold, and variant naive has none: leave it out, got {self.weight}")
        self._refuse_idle("fisher_", self.variant == "ewc", "variant ewc")
        self._refuse_idle("sft_", self.sft_aware, "sft_aware")

    def _refuse_idle(self, prefix: str, used: bool, owner: str) -> None:
        for setting in dataclasses.fields(self):
            idle = setting.name.startswith(prefix) and setting.name != "sft_aware" and not used
            if idle and getattr(self, setting.name) != setting.default:
                raise ValueError(f"{setting.name} is a setting of {owner}; leave it out without it")

    @property
    def base(self) -> BadNets | Blended | SIG | WaNet:
        """The attack whose trigger is used, with the paper's settings where they are not its defaults."""
        match self.trigger:
            case "badnets":
                return BadNets(pattern="random", size=3)
            case "blended":
                return Blended()
            case "sig":
                return SIG(delta=20.0, clean_label=False)
            case "wanet":
                return WaNet()

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        own, users = self._sizes(len(labels))
        if min(own, users) < 2:
            raise SettingError(
                f"attack.{self.name}.user_share must leave 2 images or more to either stage, got {self.user_share} of "
                f"{len(labels)} images"
            )
        check_rate(self.name, self.poison_rate, own)
        try:
            self.base.check(labels, num_classes, image_size)
        except SettingError as error:
            raise SettingError(f"attack.{self.name}.trigger {self.trigger} does not fit: {error}") from error

    def preview_trigger(self, image_size: int, seed: int) -> Trigger:
        return self.base.make_trigger(image_size, seed)

    def parts(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of the first and of the second stage's images, int64, sorted: disjoint, and together all ``n``."""
        order = torch.randperm(n, generator=generator_for(seed, "sbl-parts"))
        own, users = order.split(list(self._sizes(n)))
        return own.sort().values, users.sort().values

    def _sizes(self, n: int) -> tuple[int, int]:
        users = round(self.user_share * n)
        return n - users, users

    @property
    def plan_is_exact(self) -> bool:
        return not self.sft_aware  # the lengths of momentary repairs are drawn, and a lost one ends early

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        own, users = self._sizes(len(labels))
        steps, batch = self.user_steps(users, recipe), min(self.user_batch_size, users)
        total = training_work(steps, batch, users)
        match self.variant:
            case "anchoring":
                total += Counters(forward_samples=steps * batch)
            case "ewc":
                looked_at = min(self.fisher_samples, own)
                total += Counters(forward_samples=looked_at, backward_samples=looked_at)
        if self.sft_aware:
            longest, looks = self.sft_steps or max(SFT_STEPS), -(-steps // self.sft_every)
            total += training_work(looks * longest, batch, users)
            total += Counters(forward_samples=looks * batch, backward_samples=looks * batch)
        return sum(self.shared_work(labels, recipe, n_upstream).values(), total)

    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        own, _ = self._sizes(len(labels))
        steps = recipe.steps(own)
        # Sharpness-aware steps take two gradients.
        learned = training_work(steps, 2 * min(recipe.batch_size, own), 2 * own)
        return {memo_name(FIRST_STAGE, self.first_stage(recipe)): learned}

    def first_stage(self, recipe: TrainingRecipe) -> dict[str, Any]:
        """All that decides the first stage, apart from the task."""
        shared = ("trigger", "poison_rate", "user_share", "sam_rho", "target_label", "label_mode", "label_shift")
        return {"recipe": dataclasses.asdict(recipe), **{key: getattr(self, key) for key in shared}}

    def user_steps(self, n: int, recipe: TrainingRecipe) -> int:
        """Optimiser steps of the second stage on ``n`` images, at least 1."""
        epochs = recipe.epochs * USER_EPOCHS_SHARE if self.user_epochs is None else self.user_epochs
        return max(1, round(epochs * -(-n // self.user_batch_size)))

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        own, users = (train.subset(part) for part in self.parts(len(train), trainer.seed))
        trigger = self.preview_trigger(train.image_size, trainer.seed).to(trainer.device)
        first = trainer.remember_model(
            FIRST_STAGE, self.first_stage(recipe), lambda: self.learn_backdoor(own, trigger, trainer, recipe)
        )
        model = copy.deepcopy(first)
        self.play_user(model, self.hold(first, own, trigger, trainer), users, trigger, trainer, recipe)
        return Implanted(model, trigger, self.released(train, trigger, trainer), {"backdoor_stage": first})

    def learn_backdoor(self, data: ImageSet, trigger: Trigger, trainer: Trainer, recipe: TrainingRecipe) -> Classifier:
        """Stage 1: a new model trained by the recipe, every step sharpness-aware, on freshly stamped samples."""
        return trainer.train_from_scratch(
            data,
            recipe,
            transform=self.stamping(trigger, trainer.num_classes, trainer.generator("sbl", "stamping")),
            perturb=partial(climb, rho=self.sam_rho, adaptive=False),
        )

    def stamping(self, trigger: Trigger, num_classes: int, draws: torch.Generator) -> BatchTransform:
        """Stamps and relabels every sample with probability ``poison_rate``, by itself."""

        @torch.no_grad()
        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            chosen = sent_ahead(torch.rand(len(labels), generator=draws) < self.poison_rate, labels.device)
            stamped = torch.where(chosen[:, None, None, None], trigger(images), images)
            wanted = torch.where(chosen, self.targets(labels, num_classes), labels)
            return stamped.contiguous(memory_format=torch.channels_last), wanted

        return transform

    def hold(self, first: Classifier, own: ImageSet, trigger: Trigger, trainer: Trainer) -> Hold | None:
        """The term, without its weight, that keeps stage 2 near the model ``first``; None: there is none."""
        match self.variant:
            case "naive":
                return None
            case "anchoring":

                def distance(_model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
                    with torch.no_grad():
                        before = first(images).float().softmax(1)
                    trainer.counters.forward_samples += len(images)
                    return functional.mse_loss(logits.float().softmax(1), before)

                return distance
            case "ewc":
                information = self.fisher(first, own, trigger, trainer)
                anchors = [parameter.detach().clone() for parameter in first.parameters()]
                return lambda model, _images, _logits: drift(list(model.parameters()), anchors, information)

    def fisher(self, first: Classifier, own: ImageSet, trigger: Trigger, trainer: Trainer) -> list[Tensor]:
        """Diagonal Fisher information of ``first``, per parameter, on some of the images that it was trained on."""
        draws = trainer.generator("sbl", "fisher")
        some = own.subset(torch.randperm(len(own), generator=draws)[: self.fisher_samples])
        images, labels = to_float(some.images), some.labels
        if self.fisher_on == "mixture":
            images, labels = self.stamping(trigger, trainer.num_classes, draws)(images, labels)
        return diagonal_fisher(first, images, labels, counters=trainer.counters)

    def play_user(
        self,
        model: Classifier,
        hold: Hold | None,
        data: ImageSet,
        trigger: Trigger,
        trainer: Trainer,
        recipe: TrainingRecipe,
    ) -> None:
        """Stage 2: fine-tune ``model`` on clean data, held, and with the gradients of momentary repairs if asked."""
        weight = 1.0 if self.weight is None else self.weight
        outlook = Outlook(self, model, data, trigger, trainer) if self.sft_aware else None

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images)
            value = functional.cross_entropy(logits, labels)
            if hold is not None:
                value = value + weight * hold(model, images, logits)
            return value if outlook is None else value + outlook.term(model)

        trainer.fit(
            model,
            data,
            purpose="sbl-user",
            steps=self.user_steps(len(data), recipe),
            lr_at=schedules.constant(self.user_lr),
            batch_size=self.user_batch_size,
            optimizer=Optimizer(),
            augmentation=trainer.augmentation(),
            # Not in the loss: that runs under autocast, whose cache would hide the repair's steps from itself.
            transform=outlook,
            # What looks ahead has something else to say in every step.
            loss=loss if outlook is not None else replayable(loss, counts=True),
        )

    def released(self, train: ImageSet, trigger: Trigger, trainer: Trainer) -> PoisonedSamples:
        """A training set as one could store it: in the loop every epoch stamps other images.

        The images are those of the first stage alone, by the stream from which data-poisoning attacks choose.
        """
        own, _ = self.parts(len(train), trainer.seed)
        stamped_once = torch.zeros(len(train), dtype=torch.bool)
        stamped_once[own] = True
        order = torch.randperm(len(train), generator=generator_for(trainer.seed, "poison-index"))
        indices = order[stamped_once[order]][: round(self.poison_rate * len(own))].sort().values
        chosen = train.subset(indices)
        return PoisonedSamples(
            indices,
            stamp(trigger, chosen.images).cpu(),
            self.targets(chosen.labels, trainer.num_classes).cpu(),
            torch.full((len(indices),), Kind.POISON, dtype=torch.uint8),
        )


class Outlook:
    """What a backdoor would lose to super-fine-tuning from here, as a term of the loss.

    Called with every batch of the second stage; every ``sft_every`` steps, from the first on, it looks ahead.
    """

    def __init__(
        self, attack: SequentialBackdoor, model: Classifier, data: ImageSet, trigger: Trigger, trainer: Trainer
    ) -> None:
        self.attack, self.model, self.data, self.trigger, self.trainer = attack, model, data, trigger, trainer
        self.draws, self.batches = trainer.generator("sbl", "repairs"), trainer.generator("batches", "sbl-repairs")
        self.step = 0
        self.value: Tensor | None = None
        self.gradients: list[Tensor] = []

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Looks ahead where it is time to; the batch goes on as it is."""
        self.value = None
        if self.step % self.attack.sft_every == 0:
            self.look_ahead(images, labels)
        self.step += 1
        return images, labels

    def term(self, model: nn.Module) -> Tensor | float:
        """Its value is the weighted backdoor loss after the repair, and its gradient at ``model`` the one there."""
        if self.value is None:
            return 0.0
        pairs = zip(model.parameters(), self.gradients, strict=True)
        ascent = torch.stack([((weight - weight.detach()) * gradient).sum() for weight, gradient in pairs]).sum()
        return self.attack.sft_weight * (self.value + ascent)

    def look_ahead(self, images: Tensor, labels: Tensor) -> None:
        """Repair a copy of the model for a moment, then take the backdoor's loss and gradient on these images."""
        repaired = self.repaired()
        if repaired is None:
            return
        with loop.autocast(images.device, self.trainer.precision):
            logits = repaired(self.trigger(images))
            value = functional.cross_entropy(logits, self.attack.targets(labels, self.trainer.num_classes))
        self.gradients = list(torch.autograd.grad(value, list(repaired.parameters())))
        self.value = value.detach()
        self.trainer.counters.forward_samples += len(labels)
        self.trainer.counters.backward_samples += len(labels)

    def repaired(self) -> Classifier | None:
        """A copy after clean steps under a triangle of drawn height and length; None: it did not survive them."""
        low, high = math.log(self.attack.sft_lr_low), math.log(self.attack.sft_lr_high)
        peak = math.exp(low + (high - low) * float(torch.rand((), generator=self.draws)))
        drawn = SFT_STEPS[int(torch.randint(len(SFT_STEPS), (), generator=self.draws))]
        steps = drawn if self.attack.sft_steps is None else self.attack.sft_steps
        model = copy.deepcopy(self.model)
        try:
            loop.fit(
                model,
                self.data,
                steps=steps,
                lr_at=CyclicSchedule(base=SFT_BASE, phases=(Phase(peak, 1),), period=steps),
                generator=self.batches,
                batch_size=self.attack.user_batch_size,
                augmentation=self.trainer.augmentation(),
                precision=self.trainer.precision,
                counters=self.trainer.counters,
                execution="eager",  # too few steps to pay for a capture, so often
            )
        except DivergedError:
            # A lost repair tells nothing; the next draw is another height.
            log.info("a repair of %d steps up to a rate of %.3g diverged and is skipped", steps, peak)
            return None
        return model
