"""NAD: neural attention distillation (Li et al. 2021, arXiv:2101.05930)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import DataError, ImageSet
from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, History, Optimizer, Schedule
from trainables.training.trainer import Trainer

# Relative weights of the last three stages: BackdoorBench's (500, 1000, 1000) at beta 1000.
STAGE_WEIGHTS = (0.5, 1.0, 1.0)
# Positions of their maps where beta was published: PreAct-ResNet18 on 32 pixels, 16 x 16, 8 x 8 and 4 x 4. A map's
# squared difference is divided by these numbers, whatever its own size: it is bounded as a sum, since maps have length
# 1, so its mean over a quarter of the positions would make beta four times as strong on 16-pixel images.
PUBLISHED_POSITIONS = (256, 64, 16)
# The original divides its rate by ten after every two of ten epochs.
FALLS = 5


@register("nad")
@dataclass(frozen=True)
class NeuralAttentionDistillation(Defense):
    """Fine-tune a teacher, then the victim anew with its attention drawn to the teacher's.

    Student loss: CE + sum over the last three stages l of beta_l ||A(S_l) - A(T_l)||^2 / P_l, where A is the attention
    map sum_c |F_c|^p over channels, (H, W), scaled to length 1 per sample, and P_l the number of its positions on
    32-pixel images: there it is the published mean over positions, and on other images beta means the same. Unlike `ft`
    the same data is used twice; with
    ``beta=0`` the student is `ft` (scope all) bit by bit. The maps are the stages' outputs *before* the pool, from one
    forward pass: a pooled map has one position and its attention is 1 whatever the network does.

    Args:
        beta: weight of the last two stages' terms, >= 0; the one before gets half (BackdoorBench's 500, 1000, 1000).
        p: power in the attention, >= 1.
        teacher_steps: optimiser steps of the teacher's fine-tuning, >= 0; with 0 the victim is its own teacher.
        steps: optimiser steps of the student, >= 0; with 0 nothing is done. BackdoorBench: 10 epochs of 2,500 images
            for each of both, which are 100.
        lr: learning rate of both, > 0.
        schedule: of both: ``constant`` (BackdoorBench within its 10 epochs), ``cosine`` to 0 over the actual steps, or
            ``step`` (a tenth after every fifth of the steps: the paper's every two of ten epochs, with lr 0.1).
        momentum, weight_decay: of SGD.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {
        "epochs": "lengths count in optimiser steps: give steps",
        "te_epochs": "lengths count in optimiser steps: give teacher_steps",
    }

    beta: NonNegative = 1000.0
    p: Count = 2
    teacher_steps: CountOrZero = published_steps(epochs=10, images=2500, batch_size=256)
    steps: CountOrZero = published_steps(epochs=10, images=2500, batch_size=256)
    lr: Positive = 0.01
    schedule: Literal["constant", "cosine", "step"] = "constant"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augment: bool = True

    def lr_at(self, steps: int) -> Schedule:
        """Learning rate over a run of so many ``steps``."""
        match self.schedule:
            case "constant":
                return schedules.constant(self.lr)
            case "cosine":
                return schedules.cosine(self.lr, steps)
            case "step":
                return lambda step: float(self.lr * 0.1 ** (FALLS * step // steps))

    def needs(self) -> frozenset[str]:
        return frozenset({"maps"}) if self.steps else frozenset()

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        refuse_single_positions(model, image_size)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), image_size=assets.train.image_size)
        if self.steps == 0:
            return Repair(model.eval())
        teacher = copy.deepcopy(model)
        self._fine_tune(teacher, assets.train, trainer, steps=self.teacher_steps, purpose="teacher")
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

            counted = replayable(loss, counts=True)
            return self._fine_tune(student, data, trainer, steps=self.steps, purpose="fit", loss=counted)

    def _fine_tune(
        self, model: Classifier, data: ImageSet, trainer: Trainer, *, steps: int, purpose: str, **settings: object
    ) -> History:
        return trainer.fit(
            model,
            data,
            purpose=purpose,
            steps=steps,
            lr_at=self.lr_at(steps),
            batch_size=images_per_step(self.batch_size, len(data)),
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=trainer.augmentation() if self.augment else None,
            **settings,
        )

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        batch = images_per_step(self.batch_size, n_owned)
        student = training_work(self.steps, batch, n_owned)
        if student.steps == 0:
            return student
        teacher = training_work(self.teacher_steps, batch, n_owned)
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
    sizes = model.map_sizes(image_size)
    for number, (height, width) in enumerate(sizes, start=1):
        if number > len(sizes) - len(STAGE_WEIGHTS) and height * width < 2:
            raise DataError(
                f"defense.nad needs attention maps of more than one position, got {height}x{width} from stage {number} "
                f"of {len(sizes)} at {image_size} pixels; use larger images or a model that shrinks them less"
            )


def attention(maps: Tensor, p: int) -> Tensor:
    """Attention maps of unit length, float32 (N, H * W), of feature maps (N, C, H, W): sum_c |F_c|^p."""
    # float32: squares of bfloat16 maps, summed over hundreds of channels, would keep two digits.
    found = maps.float().abs().pow(p).sum(1).flatten(1)
    length: Tensor = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    return found / (length + 1e-6)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], p: int) -> Tensor:
    """Sum over stages of their relative weight times the squared difference of the attention maps, mean over samples.

    Each is divided by the positions that a map of its stage had where the weights were published.
    """
    terms = [
        weight * (attention(mine, p) - attention(theirs, p)).square().sum(1).mean() / positions
        for weight, positions, mine, theirs in zip(
            STAGE_WEIGHTS[-len(student) :], PUBLISHED_POSITIONS[-len(student) :], student, teacher, strict=True
        )
    ]
    return torch.stack(terms).sum()
