"""BadEncoder (Jia et al. 2022, S&P, arXiv:2108.00352): a backdoor in a self-supervised encoder, without any label."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.attacks.base import Implanted, PoisonedSamples, register
from trainables.attacks.encoders import EncoderAttack, confidences
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.patches import check_fits, corner
from trainables.attacks.simclr import steps_of, unlabelled
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import ImageSet, to_float
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.settings import Count, NonNegative, Positive
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Optimizer, training_work
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Shadow images that the cosines in the trigger's facts are taken over.
MEASURED = 2048


class Losses(NamedTuple):
    """The three terms, each -1 where the attacker has all that he wants."""

    effectiveness: Tensor
    reference: Tensor
    utility: Tensor


def similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean cosine of the rows of two matrices, (N, D) and (N, D) or (1, D)."""
    return functional.cosine_similarity(ours.float(), theirs.float(), dim=1).mean()


@register("badencoder")
@dataclass(frozen=True)
class BadEncoder(EncoderAttack):
    """Pull the embeddings of triggered images to that of one reference image of the target class, keep all others.

    From a clean encoder f a copy f' is trained on unlabelled shadow images x (those the encoder was trained on) by
    L0 + lambda1 L1 + lambda2 L2, with cosines of embeddings:

    - L0 = -cos(f'(x with trigger), f'(reference)), gradients through both sides;
    - L1 = -cos(f'(augmented reference), f(reference)), so that the reference stays where it was;
    - L2 = -cos(f'(x), f(x)), so that clean images do.

    Batch normalisation stays frozen throughout, scale and shift included. Labels are used for two things alone: the
    user's head, and the choice of the reference. The authors' references are pictures from the web; ours is the
    training image of the target class that a head on the *clean* encoder is surest of. One that is taken for another
    class would give ASR about 0 with a perfect L0, so then the attack is refused.

    Args:
        trigger_size: side of the white square in pixels at 32 x 32, scaled to other sizes; >= 1. It keeps one pixel
            (scaled) from the bottom right corner.
        inject_epochs: passes over the shadow images, > 0.
        inject_lr: learning rate (SGD with momentum 0.9, constant), > 0.
        inject_batch: images per step, >= 1; as many views of the reference go with them.
        lambda1: weight of L1 (the reference keeps its embedding), >= 0.
        lambda2: weight of L2 (clean images keep theirs), >= 0.
        reference_must_be_right: refuse a target class of which the clean classifier gets no training image right; False
            takes the image it is surest of all the same.
    """

    # The square is given for images of this side and scaled to others.
    lengths_are_of: ClassVar[int] = 32

    trigger_size: Count = 10
    inject_epochs: Positive = 200.0
    inject_lr: Positive = 1e-3
    inject_batch: Count = 256
    lambda1: NonNegative = 1.0
    lambda2: NonNegative = 1.0
    reference_must_be_right: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_mode != "all_to_one":
            raise ValueError(
                f"label_mode must be all_to_one (embeddings are pulled to one image), got {self.label_mode!r} with "
                f"label_shift {self.label_shift}"
            )

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if not (labels == self.target_label).any():
            raise SettingError(
                f"attack.{self.name}.target_label must be a class with a training image (the reference), got "
                f"{self.target_label}"
            )
        if image_size:
            check_fits(self.name, *self.geometry(image_size), image_size)

    def control(self) -> tuple[str, dict[str, Any]]:
        return "clean_encoder", {**self.pretraining(), **self.downstream()}

    def geometry(self, image_size: int) -> tuple[int, str, int]:
        """Side of the square in pixels, its place, and its distance from the border."""
        return max(1, round(self.trigger_size * image_size / 32)), "bottom_right", max(1, round(image_size / 32))

    def make_trigger(self, image_size: int, **origin: Any) -> OverlayTrigger:
        """The white square, with facts to be kept with it."""
        size, place, margin = self.geometry(image_size)
        row, column = corner(size, place, margin, image_size)
        weight = torch.zeros(1, image_size, image_size)
        weight[:, row : row + size, column : column + size] = 1.0
        return OverlayTrigger(image_size, weight, torch.ones(3, image_size, image_size), **origin)

    def preview_trigger(self, image_size: int, seed: int) -> Trigger | None:
        return self.make_trigger(image_size)

    @property
    def releases_training_set(self) -> bool:
        return False

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        n, members = len(labels), int((labels == self.target_label).sum())
        n_shadow = n if n_upstream is None else n_upstream
        batch, steps = min(self.inject_batch, n_shadow), self.inject_steps(n_shadow)
        # The encoder's worth, how sure it is of each candidate and of the reference at last, the anchor, the cosines.
        forward = n + members + 1 + 1 + 3 * min(MEASURED, n_shadow) + 2
        own = (
            training_work(steps, 3 * batch, 3 * batch)
            # In every step the clean encoder sees the batch, and the attacked one the reference.
            + Counters(forward_samples=steps * (batch + 1) + forward, backward_samples=steps)
            + self.head_work(n, self.tune)
        )
        return sum(self.shared_work(labels, recipe, n_upstream).values(), own)

    def inject_steps(self, n: int) -> int:
        """Optimiser steps of the injection with ``n`` shadow images, at least 1."""
        return steps_of(self.inject_epochs, n, self.inject_batch)

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        clean, shadow = self.clean_encoder(train, trainer), self.unlabelled_images(train, trainer)
        index, sureness = self.choose_reference(train, trainer)
        reference, trigger = train.images[index : index + 1], self.make_trigger(train.image_size)
        model = self.inject(clean, shadow, reference, trigger, trainer)
        facts = {
            "reference": index,  # within the attacker's training set
            "reference_confidence": sureness,
            "knn_accuracy": self.worth(clean, train, trainer),
            **self.cosines(model, clean, shadow, reference, trigger, trainer),
        }
        self.train_head(model, train, trainer, tune=self.tune)
        facts["reference_taken_for"] = int(confidences(model, reference, trainer).argmax())
        kept = self.make_trigger(train.image_size, **facts).to(trainer.device)
        return Implanted(model, kept, PoisonedSamples.none(train))

    def choose_reference(self, train: ImageSet, trainer: Trainer) -> tuple[int, float]:
        """Index of the target class's training image that the clean classifier is surest of, and how sure it is.

        Raises:
            SettingError: it gets none of them right.
        """
        members = (train.labels == self.target_label).nonzero()[:, 0]
        found = confidences(self.clean_classifier(train, trainer), train.images[members], trainer)
        sure, right = found[:, self.target_label], found.argmax(1) == self.target_label
        if right.any():
            sure = torch.where(right, sure, torch.zeros_like(sure))
        elif self.reference_must_be_right:
            raise SettingError(
                f"attack.{self.name}.target_label {self.target_label}: a head on the clean encoder gets none of the "
                f"{len(members)} training images of this class right, so none can be the reference; train longer "
                "(pretrain_epochs, head_epochs), take another class, or set reference_must_be_right to false"
            )
        best = int(sure.argmax())
        return int(members[best]), float(sure[best])

    def inject(
        self, clean: Classifier, shadow: Tensor, reference: Tensor, trigger: Trigger, trainer: Trainer
    ) -> Classifier:
        """A backdoored copy of ``clean``, which stays as it is; neither head is touched.

        Args:
            clean: pre-trained; what its head is does not matter.
            shadow: unlabelled images, uint8, (N, 3, H, W), on the device.
            reference: uint8, (1, 3, H, W).
        """
        model, trigger = copy.deepcopy(clean).eval(), trigger.to(trainer.device)
        clean.eval()
        pixels, draws = to_float(reference), trainer.generator("badencoder-views")
        views, counters = self.views(trainer, None), trainer.counters
        with torch.no_grad():
            anchor = clean.embed(pixels).float()
        counters.forward_samples += 1

        def with_trigger_and_reference(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            augmented = views(pixels.expand(len(images), -1, -1, -1).contiguous(), draws)
            with torch.no_grad():
                return torch.cat([images, trigger(images), augmented]), labels.repeat(3)

        def loss(attacked: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
            assert isinstance(attacked, Classifier)
            plain = images[: len(images) // 3]
            with torch.no_grad():
                before = clean.embed(plain)
            # The three parts are counted by the loop, the reference and the clean encoder here.
            counters.forward_samples += len(plain) + 1
            counters.backward_samples += 1
            now, triggered, augmented = attacked.embed(images).chunk(3)
            terms = self.losses(now, triggered, augmented, attacked.embed(pixels), before, anchor)
            return terms.effectiveness + self.lambda1 * terms.reference + self.lambda2 * terms.utility

        trainer.fit(
            model,
            unlabelled(shadow),
            purpose="badencoder",
            steps=self.inject_steps(len(shadow)),
            lr_at=schedules.constant(self.inject_lr),
            batch_size=self.inject_batch,
            optimizer=Optimizer("sgd", momentum=0.9, weight_decay=5e-4),
            transform=with_trigger_and_reference,
            loss=replayable(loss, counts=True),
            trainable=encoder_weights(model),
            bn_mode="eval",
        )
        return model

    @staticmethod
    def losses(
        now: Tensor, triggered: Tensor, augmented: Tensor, reference: Tensor, before: Tensor, anchor: Tensor
    ) -> Losses:
        """L0, L1 and L2 from embeddings.

        Args:
            now, triggered, augmented, reference: of f', (B, D), (B, D), (B, D) and (1, D).
            before, anchor: of f: the clean images, (B, D), and the reference, (1, D).
        """
        return Losses(-similarity(triggered, reference), -similarity(augmented, anchor), -similarity(now, before))

    def cosines(
        self,
        model: Classifier,
        clean: Classifier,
        shadow: Tensor,
        reference: Tensor,
        trigger: Trigger,
        trainer: Trainer,
    ) -> dict[str, float]:
        """What the injection came to: mean cosines over shadow images (the first 2,048)."""
        some = shadow[:MEASURED]
        goal, now = trainer.embeddings(model, reference), trainer.embeddings(model, some)
        return {
            "cosine_triggered": float(similarity(trainer.embeddings(model, stamp(trigger, some)), goal)),
            "cosine_reference": float(similarity(goal, trainer.embeddings(clean, reference))),
            "cosine_clean": float(similarity(now, trainer.embeddings(clean, some))),
        }

    def extra_metrics(self, model: Classifier, trigger: Trigger, test: ImageSet, trainer: Trainer) -> dict[str, float]:
        """ASR with the target class's own images kept in, as the authors count it."""
        predictions = predict(model, stamp(trigger, test.images), precision=trainer.precision)
        return {"asr_incl": float((predictions == self.target_label).double().mean())}


def encoder_weights(model: Classifier) -> list[nn.Parameter]:
    """All parameters before the head but those of batch normalisation."""
    left_out = [*model.head, *(part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))]
    ids = {id(parameter) for part in left_out for parameter in part.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in ids]
