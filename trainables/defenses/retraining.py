"""What detectors on the training set share: features, principal directions, and retraining without what was found."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.data.classes import class_members
from trainables.data.images import DataError, in_parts, to_float
from trainables.defenses.base import Defense, PoisonedData, Repair, images_per_step, training_work
from trainables.models.classifier import Classifier
from trainables.settings import NonNegative, NormalisedBatch, Positive, ShareBelowOne
from trainables.training.loop import Counters, autocast
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Directions with less than this share of the largest variance are rounding of float32 features, not data.
# Under bfloat16 rounding has shares of 1e-6 and passes: too little to matter, unless `ac` whitens it (``ica``).
RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Finding:
    """What a detector says of a training set of N samples.

    Args:
        scores: float64 (N,), higher is more suspicious.
        removed: bool (N,), what is left out of the retraining.
        flagged_classes: labels called attacked; None for a detector that does not judge classes.
        notes: numbers worth keeping, JSON-able.
    """

    scores: Tensor
    removed: Tensor
    flagged_classes: tuple[int, ...] | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RetrainingDefense(Defense):
    """Find the poison in the victim's features, then train a new model on the rest.

    Features are computed once per victim and a model is trained once per distinct kept set (`Trainer.remember`), so
    settings that differ in the detector alone cost no further training. Without anything to remove it abstains.

    Args:
        epochs: passes of the retraining over what is kept, > 0; the rate falls along a cosine to 0. Epochs, not steps:
            it trains a new model on the whole training set, as the victim was (see `base`).
        lr: peak rate of the retraining, > 0.
        batch_size: images per step of the retraining, >= 2, at most a quarter of the training set.
        momentum, weight_decay: of the retraining's SGD.
    """

    owns: ClassVar[type[PoisonedData]] = PoisonedData
    plan_is_exact: ClassVar[bool] = False  # the less is kept, the shorter are the epochs
    detects: ClassVar[bool] = True

    epochs: Positive = 100
    lr: Positive = 0.01
    batch_size: NormalisedBatch = 256
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4

    def recipe(self, n: int) -> TrainingRecipe:
        """How the new model is trained, by a defender who was given ``n`` images."""
        return TrainingRecipe(
            epochs=self.epochs,
            batch_size=images_per_step(self.batch_size, n),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    @abstractmethod
    def find(self, features: dict[str, Tensor], labels: Tensor) -> Finding:
        """Judge the training set by its features (of `victim_features`) and its labels as released, int64 (N,)."""

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        if n_owned < 2 * model.num_classes:
            raise DataError(
                f"defense {self.name} compares samples within a class: it needs at least 2 per class "
                f"({2 * model.num_classes} training images), got {n_owned}"
            )

    def detect(self, model: Classifier, assets: PoisonedData, trainer: Trainer) -> Repair:
        train = assets.train
        self.check(model, len(train))
        features = trainer.remember("features", {}, lambda: victim_features(model, train.images, trainer))
        finding = self.find(features, train.labels)
        removed = finding.removed.nonzero()[:, 0]
        return Repair(
            model,
            status="ok" if len(removed) else "abstained",
            scores=finding.scores,
            removed=removed,
            flagged_classes=finding.flagged_classes,
            notes=finding.notes,
        )

    def repair(self, model: Classifier, assets: PoisonedData, trainer: Trainer) -> Repair:
        train, found = assets.train, self.detect(model, assets, trainer)
        removed = found.removed
        assert removed is not None, "a detector says what it removes"
        if len(removed):
            left = torch.ones(len(train), dtype=torch.bool, device=removed.device)
            left[removed] = False
            kept = left.nonzero()[:, 0]
            recipe = self.recipe(len(train))
            found.model = trainer.remember_model(
                "retraining",
                {"removed": digest(removed), "recipe": dataclasses.asdict(recipe)},
                lambda: trainer.train_from_scratch(train.subset(kept), recipe, purpose="retraining"),
            )
        return found

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        recipe = self.recipe(n_owned)
        work = training_work(recipe.steps(n_owned), recipe.batch_size, n_owned)
        work.forward_samples += n_owned
        return work


def digest(indices: Tensor) -> str:
    """Hex digest of indices, int64 (M,): names a subset of the training set."""
    return hashlib.blake2b(indices.cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


@torch.no_grad()
def victim_features(model: Classifier, images: Tensor, trainer: Trainer, batch_size: int = 1024) -> dict[str, Tensor]:
    """Features of uint8 images (N, 3, H, W), float32 (N, D), of two depths from one counted forward pass.

    ``stage4_pooled`` are the penultimate features and ``stage3_pooled`` the spatial means of the stage before the last
    one. In eval mode, without augmentation, in the order of the images: one row belongs to one index.
    """
    maps = list[Tensor]()
    found: dict[str, list[Tensor]] = {"stage3_pooled": [], "stage4_pooled": []}
    handle = model.stages[-2].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    model.eval()
    try:
        with autocast(images.device, trainer.precision):
            for batch in in_parts(images, batch_size):
                found["stage4_pooled"].append(model.features(to_float(batch)).float())
                found["stage3_pooled"].append(maps.pop().float().mean((2, 3)))
                trainer.counters.forward_samples += len(batch)
    finally:
        handle.remove()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def members(labels: Tensor) -> list[tuple[int, Tensor]]:
    """Every label that occurs, with the indices of its samples (int64, ascending)."""
    return [(label, indices) for label, indices in enumerate(class_members(labels)) if len(indices)]


def principal_directions(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Directions of largest variance and the standard deviation along each, largest first.

    Fewer than ``count`` come back where the points have fewer dimensions or span fewer; none where all are equal.

    Args:
        points: float64, (N, D); their mean does not matter.

    Returns:
        (D, R) with orthonormal columns, and (R,) with positive values, R <= count. The sign of a column is arbitrary.
    """
    centred = points - points.mean(0)
    n, width = centred.shape
    # Of the two Gram matrices the smaller one: an eigenproblem of min(N, D) in place of an SVD of (N, D).
    if width <= n:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
    else:
        values, left = torch.linalg.eigh(centred @ centred.T)
        vectors = centred.T @ left / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
    order = torch.arange(len(values) - 1, -1, -1, device=values.device)[:count]
    order = order[values[order] > RANK_TOLERANCE * values[-1].clamp(min=torch.finfo(values.dtype).tiny)]
    return vectors[:, order], (values[order] / n).sqrt()
