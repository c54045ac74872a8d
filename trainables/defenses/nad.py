"""NAD: neural attention distillation (Li et al. 2021, arXiv:2101.05930)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import DataError, ImageSet
from trainables.defenses.base import CleanData, Defense, Repair, register, training_work
from trainables.models.classifier import Classifier
from trainables.settings import Count, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, History, Optimizer, Schedule
from trainables.training.trainer import Trainer

# Relative weights of the last three stages: BackdoorBench's (500, 1000, 1000) at beta 1000.
STAGE_WEIGHTS = (0.5, 1.0, 1.0)
# The original divides its rate by ten every two epochs.
EPOCHS_PER_STEP = 2


@register("nad")
@dataclass(frozen=True)
class NeuralAttentionDistillation(Defense):
    """Fine-tune a teacher, then the victim anew with its attention drawn to the teacher's.

    Student loss: CE + sum over the last three stages l of beta_l MSE(A(S_l), A(T_l)), where A is the attention map
    sum_c |F_c|^p over channels, (H, W), scaled to length 1 per sample. Unlike `ft` the same data is used twice; with
    ``beta=0`` the student is `ft` (scope all) bit by bit. The maps are the stages' outputs *before* the pool, from one
    forward pass: a pooled map has one position and its attention is 1 whatever the network does.

    Args:
        beta: weight of the last two stages' terms, >= 0; the one before gets half (BackdoorBench's 500, 1000, 1000).
        p: power in the attention, >= 1.
        te_epochs: epochs of the teacher's fine-tuning, >= 0; with 0 the victim is its own teacher.
        epochs: epochs of the student, >= 0; with 0 nothing is done.
        lr: learning rate of both, > 0.
        schedule: of both: ``constant`` (BackdoorBench within its 10 epochs), ``cosine`` to 0 over the actual steps, or
            ``step`` (a tenth every two epochs, the paper's, with lr 0.1).
        momentum, weight_decay: of SGD.
        batch_size: images per step.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData

    beta: NonNegative = 1000.0
    p: Count = 2
    te_epochs: NonNegative = 10
    epochs: NonNegative = 10
    lr: Positive = 0.01
    schedule: Literal["constant", "cosine", "step"] = "constant"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augment: bool = True

    def steps(self, epochs: float, n: int) -> int:
        """Optimiser steps of so many epochs on a clean set of ``n``."""
        return round(epochs * -(-n // self.batch_size))

    def lr_at(self, steps: int, n: int) -> Schedule:
        """Learning rate over a run of so many ``steps`` on ``n`` images; ``step`` counts in epochs."""
        match self.schedule:
            case "constant":
                return schedules.constant(self.lr)
            case "cosine":
                return schedules.cosine(self.lr, steps)
            case "step":
                period = EPOCHS_PER_STEP * -(-n // self.batch_size)
                return lambda step: float(self.lr * 0.1 ** (step // period))

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        refuse_single_positions(model, image_size)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), image_size=assets.train.image_size)
        if self.steps(self.epochs, len(assets.train)) == 0:
            return Repair(model.eval())
        teacher = copy.deepcopy(model)
        self._fine_tune(teacher, assets.train, trainer, epochs=self.te_epochs, purpose="teacher")
        return Repair(model, history=self.distill(model, teacher, assets.train, trainer))

    def distill(self, student: Classifier, teacher: Classifier, data: ImageSet, trainer: Trainer) -> History:
        """Train ``student`` in place towards the attention of ``teacher``, which stays as it is."""
        teacher.eval()
        with stage_outputs(student) as seen, stage_outputs(teacher) as shown:

            def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
                with torch.no_grad():
                    teacher(images)
                trainer.counters.forward_samples += len(images)
                logits = model(images)  # fills `seen` on its way
                return functional.cross_entropy(logits, labels) + self.beta * attention_distance(seen, shown, self.p)

            return self._fine_tune(student, data, trainer, epochs=self.epochs, purpose="fit", loss=loss)

    def _fine_tune(
        self, model: Classifier, data: ImageSet, trainer: Trainer, *, epochs: float, purpose: str, **settings: object
    ) -> History:
        steps = self.steps(epochs, len(data))
        return trainer.fit(
            model,
            data,
            purpose=purpose,
            steps=steps,
            lr_at=self.lr_at(steps, len(data)),
            batch_size=self.batch_size,
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=trainer.augmentation() if self.augment else None,
            **settings,
        )

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        student = training_work(self.steps(self.epochs, n_owned), self.batch_size, n_owned)
        if student.steps == 0:
            return student
        teacher = training_work(self.steps(self.te_epochs, n_owned), self.batch_size, n_owned)
        return Counters(
            steps=teacher.steps + student.steps,
            forward_samples=teacher.forward_samples + 2 * student.forward_samples,
            backward_samples=teacher.backward_samples + student.backward_samples,
        )


@contextmanager
def stage_outputs(model: Classifier) -> Iterator[list[Tensor]]:
    """The maps (N, C, H, W) of the last three stages of the latest forward pass, in order, while the block lasts."""
    stages = list(model.stages)[-len(STAGE_WEIGHTS) :]
    maps = [torch.empty(0)] * len(stages)

    def keep(place: int) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            maps[place] = output

        return hook

    handles = [stage.register_forward_hook(keep(place)) for place, stage in enumerate(stages)]  # type: ignore[arg-type]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def refuse_single_positions(model: Classifier, image_size: int) -> None:
    """Refuse, without computing anything, a model whose last three stages do not all have two positions or more.

    Raises:
        DataError: one of them has a single position, where all attention is 1 and nothing is distilled.
    """
    maps = torch.empty(1, 3, image_size, image_size, device="meta")
    stages = list(copy.deepcopy(model.stages).to("meta").eval())
    for number, stage in enumerate(stages, start=1):
        maps = stage(maps)
        height, width = maps.shape[-2:]
        if number > len(stages) - len(STAGE_WEIGHTS) and height * width < 2:
            raise DataError(
                f"defense.nad needs attention maps of more than one position, got {height}x{width} from stage {number} "
                f"of {len(stages)} at {image_size} pixels; use larger images or a model that shrinks them less"
            )


def attention(maps: Tensor, p: int) -> Tensor:
    """Attention maps of unit length, float32 (N, H * W), of feature maps (N, C, H, W): sum_c |F_c|^p."""
    # float32: squares of bfloat16 maps, summed over hundreds of channels, would keep two digits.
    found = maps.float().abs().pow(p).sum(1).flatten(1)
    length: Tensor = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    return found / (length + 1e-6)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], p: int) -> Tensor:
    """Sum over stages of their relative weight times the mean squared difference of the attention maps."""
    terms = [
        weight * functional.mse_loss(attention(mine, p), attention(theirs, p))
        for weight, mine, theirs in zip(STAGE_WEIGHTS[-len(student) :], student, teacher, strict=True)
    ]
    return torch.stack(terms).sum()
