"""What attacks on encoders share: pre-training without labels, and the user's head on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.attacks.base import Attack
from trainables.attacks.simclr import Views, knn_accuracy, pretrain, pretraining_work, steps_of
from trainables.data.images import DataError, ImageSet
from trainables.models.classifier import Classifier, Head
from trainables.settings import NormalisedBatch, Positive, PositiveShare
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer, training_work
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer, memo_name

# Names in the memo: a pre-trained encoder, and the same under a trained head.
ENCODER, CLASSIFIER = "encoder", "encoder-classifier"


@dataclass(frozen=True)
class EncoderAttack(Attack):
    """An encoder is trained without labels, and a user puts a head for a task of their own on it.

    Lengths and rates are those of Sha et al. (supplement A.2) and do not follow the recipe, which trains with labels.

    Args:
        pretrain_epochs: passes of SimCLR over the unlabelled images, > 0. 100 to 200 already give useful features.
        pretrain_lr: learning rate of SimCLR (Adam, constant), > 0; the authors' code has 1e-3.
        pretrain_batch: images per step of SimCLR, each in two views, >= 2.
        temperature: temperature of SimCLR's loss, > 0.
        crop: smallest share of an image that a view of it shows, in (0, 1]. Where whole shapes make the class, 0.3
            is far better than the published 0.08.
        head_epochs: passes of the head over the labelled images, > 0.
        head_lr: learning rate of the head (Adam, constant), > 0; the authors' code has 1e-4 for a fixed encoder.
        head_batch: images per step of the head, >= 2; the authors' code has 64 for a fixed encoder.
        tune: what learns the labels. ``classifier``: only the head is trained, on embeddings computed once; ``whole``:
            all weights.
    """

    releases_encoder: ClassVar[bool] = True

    pretrain_epochs: Positive = 1000.0
    pretrain_lr: Positive = 3e-4
    pretrain_batch: NormalisedBatch = 256
    temperature: Positive = 0.5
    crop: PositiveShare = 0.08
    head_epochs: Positive = 200.0
    head_lr: Positive = 3e-4
    head_batch: NormalisedBatch = 256
    tune: Literal["classifier", "whole"] = "classifier"

    def pretraining(self) -> dict[str, Any]:
        """The settings that decide the encoder."""
        keys = ("pretrain_epochs", "pretrain_lr", "pretrain_batch", "temperature", "crop")
        return {key: getattr(self, key) for key in keys}

    def downstream(self) -> dict[str, Any]:
        """The settings that decide what is trained on it."""
        return {key: getattr(self, key) for key in ("head_epochs", "head_lr", "head_batch", "tune")}

    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        n_unlabelled = len(labels) if n_upstream is None else n_upstream
        pretrained = pretraining_work(self.pretrain_epochs, n_unlabelled, self.pretrain_batch)
        parts = {memo_name(ENCODER, self.pretraining()): pretrained}
        if self.asks_classifier:
            parts[memo_name(CLASSIFIER, self.classifying())] = self.head_work(len(labels), "classifier")
        return parts

    @property
    def asks_classifier(self) -> bool:
        """Whether a head is trained on the clean encoder as well."""
        return True

    def classifying(self) -> dict[str, Any]:
        """The settings that decide the clean classifier."""
        return {**self.pretraining(), **self.downstream(), "tune": "classifier"}

    def head_work(self, n: int, tune: str) -> Counters:
        """Work of `train_head` on ``n`` images."""
        steps = steps_of(self.head_epochs, n, self.head_batch)
        return training_work(steps, self.head_batch, n) if tune == "whole" else Trainer.head_work(steps, n)

    def unlabelled_images(self, train: ImageSet, trainer: Trainer) -> Tensor:
        """The images of the encoder's data set, uint8, on the device; the task's own where there is no other.

        Raises:
            DataError: they are not of the task's size.
        """
        if trainer.upstream is None:
            return train.images
        if trainer.upstream.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"the encoder's images must have the task's size {tuple(train.images.shape[1:])}, got "
                f"{tuple(trainer.upstream.shape[1:])}; set image_size"
            )
        return trainer.upstream.to(trainer.device)

    def views(self, trainer: Trainer, crop: float | None) -> Views:
        """Views for the images at hand: of a task's own images, flips are left out where they change labels."""
        return Views(crop=crop, flip=0.5 if trainer.upstream is not None or trainer.flip else 0.0)

    def clean_encoder(self, train: ImageSet, trainer: Trainer) -> Classifier:
        """A model whose encoder is pre-trained and whose head is not trained; shared by all victims of the task."""

        def build() -> Classifier:
            model = trainer.fresh_model()
            pretrain(
                model,
                self.unlabelled_images(train, trainer),
                trainer,
                epochs=self.pretrain_epochs,
                lr=self.pretrain_lr,
                batch_size=self.pretrain_batch,
                temperature=self.temperature,
                views=self.views(trainer, self.crop),
            )
            return model

        return trainer.remember_model(ENCODER, self.pretraining(), build)

    def clean_classifier(self, train: ImageSet, trainer: Trainer) -> Classifier:
        """The clean encoder, fixed, under a trained head: what the attacker expects of a user; shared likewise."""

        def build() -> Classifier:
            model = self.clean_encoder(train, trainer)
            self.train_head(model, train, trainer, tune="classifier")
            return model

        return trainer.remember_model(CLASSIFIER, self.classifying(), build)

    def train_head(self, model: Classifier, train: ImageSet, trainer: Trainer, *, tune: str) -> None:
        """Put a new head on the encoder and train it, or all of the model, with the task's labels; in place.

        All encoders of a seed get the same initial head and the same batches.
        """
        model.reset_head(trainer.generator("head"))
        settings: dict[str, Any] = {
            "steps": steps_of(self.head_epochs, len(train), self.head_batch),
            "lr_at": schedules.constant(self.head_lr),
            "batch_size": self.head_batch,
            "optimizer": Optimizer("adam", weight_decay=0.0),
        }
        if tune == "whole":
            trainer.fit(model, train, purpose="head", **settings)
            return
        trainer.fit_head(model, train, purpose="head", **settings)

    def worth(self, encoder: Classifier, train: ImageSet, trainer: Trainer) -> float:
        """Accuracy of nearest neighbours among the embeddings of the task's training images, see `knn_accuracy`."""
        vectors = trainer.embeddings(encoder, train.images)
        return knn_accuracy(vectors, train.labels, trainer.num_classes, trainer.generator("knn"))


@torch.no_grad()
def confidences(model: Classifier, images: Tensor, trainer: Trainer) -> Tensor:
    """Softmax outputs, float32 (N, K), of uint8 images: the head in float32 on embeddings, as it is trained."""
    vectors = trainer.embeddings(model, images)
    return torch.softmax(Head(model)(vectors), dim=1)
