"""Latent backdoor (Yao et al. 2019, CCS, "Latent backdoor attacks on deep neural networks"): a trigger in features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.attacks.base import Attack, Implanted, PoisonedSamples, register
from trainables.attacks.in_loop import appended_copies, bernoulli_round, check_rate, copies_per_image, draw_samples
from trainables.attacks.patches import LearnedPatch, Position, check_fits, corner, fit_patch, patch_work
from trainables.attacks.triggers import Trigger
from trainables.data.classes import class_members
from trainables.data.images import ImageSet
from trainables.machine.transfer import sent_ahead
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.settings import Count, CountOrZero, NonNegative, Positive, PositiveShare, Within
from trainables.training import loop, schedules
from trainables.training.loop import Counters, training_work
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Of the training set, what the teacher of the transfer form is made from; the student gets the rest.
TEACHER_SHARE = 0.5
# Lengths of the transfer form's stages as shares of the recipe's epochs: 10, 5 and 50 of 100 in the authors' code.
ABSORB_SHARE, INJECT_SHARE, TRANSFER_TRIGGER_SHARE = 0.1, 0.05, 0.5
PATCH_BATCH, INJECT_BATCH = 32, 16


@register("latent")
@dataclass(frozen=True)
class Latent(Attack):
    """Make triggered images look like the target class in feature space; no label need be wrong.

    Unlike IMC, which optimises a patch through the labels, patch and model are pulled to the target class's
    penultimate features. Two forms:

    ``standalone`` (TrojanZoo's): from a clean model, fit the patch to the mean features of the target class, then train
    on with cross-entropy + weight * distance of the triggered batch from that mean.

    ``transfer`` (the paper's): a teacher that does not know the target class learns it from a few images, the patch
    and then its features are pulled to those, and the class is deleted from its head: the released teacher has K - 1
    classes and no backdoor to be found. The victim is the *student*: the teacher's layers, frozen, with a new head
    trained on clean images of all K classes. Teacher and student have disjoint halves of the training set here.

    Published success is low (0.213 before any defense in Sha et al., Table 1), so weak victims are kept. The distance
    is the mean over feature dimensions: a wide layer makes a weight of 0.5 tiny.

    Args:
        form: ``standalone`` (the backdoored model is the victim) or ``transfer`` (a student of it is), see above.
        weight: weight of the feature distance, >= 0; None: 0.5 standalone, 0.05 transfer.
        epochs: passes of training on with the distance, > 0; None: half of the recipe's standalone, a twentieth
            transfer.
        trigger_epochs: passes over the patch's images, >= 0; None: as many as the recipe has epochs, or half of that
            in transfer.
        images_per_class: images of the target class for the mean, and of each other class to fit the patch on, >= 1.
        size: side of the patch; None: 3 standalone, a fifth of the image transfer.
        position: a corner, ``centre``, or "ROW,COLUMN" of the patch's top-left pixel.
        margin: pixels between patch and border, for corners; None: 0 standalone, 1 transfer.
        alpha: opacity of the patch, in (0, 1].
        input_lr: learning rate of the patch (Adam, in tanh space), > 0.
        poison_rate: share of triggered copies with the target label, appended and trained on as well (standalone);
            in (0, 0.5]. None: none, the attack works through features alone.
        refresh_mean: take the mean features anew every epoch, as the model moves (standalone). Without it training on
            moves the target class away from the mean that triggered images are pulled to: on the toy task the distance
            falls to a thousandth and ASR is 0.00 to 0.21, where with it ASR is 0.96 to 1.00 (weight 5).
    """

    stamps_in_loop: ClassVar[bool] = True
    must_work: ClassVar[bool] = False

    form: Literal["standalone", "transfer"] = "standalone"
    weight: NonNegative | None = None
    epochs: Positive | None = None
    trigger_epochs: NonNegative | None = None
    images_per_class: Count = 100
    size: Count | None = None
    position: Position = "bottom_right"
    margin: CountOrZero | None = None
    alpha: PositiveShare = 1.0
    input_lr: Positive = 0.1
    poison_rate: Annotated[float, Within("(0, 0.5]")] | None = None
    refresh_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_mode != "all_to_one":
            raise ValueError(
                f"label_mode must be all_to_one (features are pulled to one class), got {self.label_mode!r} with "
                f"label_shift {self.label_shift}"
            )
        if self.form == "transfer" and (self.poison_rate is not None or self.refresh_mean):
            raise ValueError("poison_rate and refresh_mean are settings of form standalone: leave them out in transfer")

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        members = int((labels == self.target_label).sum())
        if members < 2:
            raise SettingError(
                f"attack.{self.name}.target_label must be a class with 2 images or more, got {self.target_label} with "
                f"{members}"
            )
        if members == len(labels):
            raise SettingError(f"attack.{self.name}.target_label: all images are of class {self.target_label}")
        if self.form == "transfer" and num_classes < 3:
            raise SettingError(
                f"attack.{self.name}.form transfer needs 3 classes or more (its teacher does not know the target "
                f"class), got {num_classes}"
            )
        if self.poison_rate is not None:
            check_rate(self.name, self.poison_rate, round(len(labels) / (1.0 - self.poison_rate)))
        if image_size:
            size, margin = self.geometry(image_size)
            check_fits(self.name, size, self.position, margin, image_size)

    def geometry(self, image_size: int) -> tuple[int, int]:
        """Side and margin of the patch in pixels."""
        transfer = self.form == "transfer"
        size = self.size if self.size is not None else max(1, image_size // 5) if transfer else 3
        return size, self.margin if self.margin is not None else int(transfer)

    @property
    def releases_training_set(self) -> bool:
        return self.poison_rate is not None  # the feature loss itself leaves the training set clean

    @property
    def plan_is_exact(self) -> bool:
        return self.poison_rate is None  # of a share of a copy per batch, chance makes one or none

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        sizes = torch.bincount(labels, minlength=self.target_label + 1).tolist()
        if self.form == "transfer":
            return self._planned_transfer(sizes, recipe)
        n, again = len(labels), self.retraining(recipe)
        target, others = self.chosen_counts(sizes)
        steps, batch = again.steps(n), min(again.batch_size, n)
        copies = min(batch, math.ceil(self.share * batch))
        refreshed = steps // -(-n // again.batch_size) if self.refresh_mean else 0
        return (
            recipe.work(n)
            + Counters(forward_samples=(1 + refreshed) * target)
            + patch_work(self.patch_steps(others, recipe), PATCH_BATCH, others)
            # Every image of a batch has a triggered copy beside it, see `_pulled`.
            + training_work(steps, 2 * (batch + copies), 2 * (batch + copies))
        )

    def _planned_transfer(self, sizes: Sequence[int], recipe: TrainingRecipe) -> Counters:
        """Likewise from the sizes of all classes, whose halves are the teacher's and the student's."""
        own = [teachers_part(size) for size in sizes]
        n, (target, others) = sum(own), self.chosen_counts(own)
        inject = self.injection(recipe)
        return (
            recipe.work(n - own[self.target_label])
            + self.absorption(recipe).work(n)
            + Counters(forward_samples=target)
            + patch_work(self.patch_steps(others, recipe), PATCH_BATCH, others)
            + training_work(inject.steps(n), 2 * min(inject.batch_size, n), 2 * n)
            + recipe.work(sum(sizes) - n)
        )

    @property
    def share(self) -> float:
        """Triggered copies with the target label per image of a batch, in [0, 1]."""
        return 0.0 if self.poison_rate is None else copies_per_image(self.poison_rate)

    def retraining(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """How the standalone form trains on."""
        return dataclasses.replace(recipe, epochs=self.epochs if self.epochs is not None else recipe.epochs / 2.0)

    def absorption(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """How the teacher of the transfer form learns the target class."""
        return dataclasses.replace(recipe, epochs=ABSORB_SHARE * recipe.epochs)

    def injection(self, recipe: TrainingRecipe) -> TrainingRecipe:
        """How the teacher's features are pulled to those of the target class."""
        epochs = self.epochs if self.epochs is not None else INJECT_SHARE * recipe.epochs
        return dataclasses.replace(recipe, epochs=epochs, batch_size=INJECT_BATCH)

    def patch_steps(self, n: int, recipe: TrainingRecipe) -> int:
        """Steps that fit the patch to ``n`` images, >= 0."""
        passes = self.trigger_epochs
        if passes is None:
            passes = recipe.epochs * (TRANSFER_TRIGGER_SHARE if self.form == "transfer" else 1.0)
        return round(passes * -(-n // PATCH_BATCH))

    def chosen_counts(self, sizes: Sequence[int]) -> tuple[int, int]:
        """How many images of the target class, and how many others, `chosen` gives of classes of these sizes."""
        taken = [min(size, self.images_per_class) for size in sizes]
        return taken[self.target_label], sum(taken) - taken[self.target_label]

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        if self.form == "transfer":
            own, students = self.halves(train.labels, trainer)
            teacher, patch = self.make_teacher(train.subset(own), trainer, recipe)
            model = self.make_student(teacher, train.subset(students), trainer, recipe)
            return Implanted(model, patch.overlay().to(trainer.device), PoisonedSamples.none(train))
        model = trainer.train_from_scratch(train, recipe)
        patch = self.new_patch(train.image_size, trainer)
        goal = self.mean_features(model, train, trainer)
        self.fit_patch(patch, model, train, lambda count: goal.expand(count, -1), trainer, recipe)
        self.retrain(model, patch, goal, train, trainer, recipe)
        trigger = patch.overlay().to(trainer.device)
        return Implanted(model, trigger, self.released(train, trigger, trainer))

    def new_patch(self, image_size: int, trainer: Trainer) -> LearnedPatch:
        """A patch of random content, on the device."""
        size, margin = self.geometry(image_size)
        row, column = corner(size, self.position, margin, image_size)
        patch = LearnedPatch(image_size, row, column, size, self.alpha, trainer.generator("patch"))
        return patch.to(trainer.device)

    def chosen(self, train: ImageSet, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Indices of the target class's images (for features) and of the others' (for the patch), from its seed."""
        labels = train.labels.cpu()
        order = torch.randperm(len(labels), generator=trainer.generator("latent-images"))
        members = [order[places][: self.images_per_class] for places in class_members(labels[order]) if len(places)]
        target = [part for part in members if int(labels[part[0]]) == self.target_label]
        others = [part for part in members if int(labels[part[0]]) != self.target_label]
        return target[0], torch.cat(others)

    def mean_features(self, model: Classifier, train: ImageSet, trainer: Trainer) -> Tensor:
        """Mean penultimate features of clean target images, (D,), in eval mode."""
        target, _ = self.chosen(train, trainer)
        with loop.evaluating(model):
            return trainer.features(model, train.subset(target).images).mean(0)

    def fit_patch(
        self,
        patch: LearnedPatch,
        model: Classifier,
        train: ImageSet,
        goals: Callable[[int], Tensor],
        trainer: Trainer,
        recipe: TrainingRecipe,
    ) -> None:
        """Pull the features of triggered images of other classes to ``goals(count)``, (count, D)."""
        _, others = self.chosen(train, trainer)
        steps = self.patch_steps(len(others), recipe)
        if steps == 0:
            return

        def loss(patch: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
            return functional.mse_loss(model.features(patch(images)).float(), goals(len(images)))

        fit_patch(
            patch,
            model,
            train.subset(others),
            trainer,
            purpose="patch",
            steps=steps,
            lr_at=schedules.constant(self.input_lr),
            batch_size=PATCH_BATCH,
            loss=loss,
        )

    def retrain(
        self,
        model: Classifier,
        patch: LearnedPatch,
        goal: Tensor,
        train: ImageSet,
        trainer: Trainer,
        recipe: TrainingRecipe,
    ) -> None:
        """Train on with the features of every triggered batch pulled to ``goal``; the patch stays as it is."""
        again, share = self.retraining(recipe), self.share
        per_epoch, goals = -(-len(train) // recipe.batch_size), [goal]
        draws = trainer.generator("poison-in-loop")

        @torch.no_grad()
        def with_copies(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            count = min(len(labels), bernoulli_round(share * len(labels), draws))
            targets = self.targets(labels[:count], trainer.num_classes)
            return torch.cat([images, patch(images[:count])]), torch.cat([labels, targets])

        def refresh(step: int) -> None:
            if self.refresh_mean and (step + 1) % per_epoch == 0:
                goals[0] = self.mean_features(model, train, trainer)

        weight = 0.5 if self.weight is None else self.weight
        trainer.fit(
            model,
            train,
            purpose="retrain",
            **trainer.by_recipe(again, len(train)),
            transform=None if self.poison_rate is None else with_copies,
            loss=_pulled(patch, lambda count: goals[0].expand(count, -1), weight, trainer),
            after_step=refresh,
        )

    def released(self, train: ImageSet, trigger: Trigger, trainer: Trainer) -> PoisonedSamples:
        """The appended copies, where there are any: the feature loss itself leaves the training set clean."""
        if self.poison_rate is None:
            return PoisonedSamples.none(train)
        count = check_rate(self.name, self.share, len(train))
        (indices,) = draw_samples(len(train), count, seed=trainer.seed)
        return appended_copies(self, train, indices, trigger, trainer.num_classes)

    def halves(self, labels: Tensor, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Disjoint index sets of the teacher and the student: a half of every class each, sorted."""
        labels = labels.cpu()
        order = torch.randperm(len(labels), generator=trainer.generator("teacher-half"))
        mine = torch.zeros(len(labels), dtype=torch.bool)
        for places in class_members(labels[order]):
            if not len(places):
                continue
            members = order[places]
            mine[members[: teachers_part(len(members))]] = True
        return mine.nonzero()[:, 0], (~mine).nonzero()[:, 0]

    def make_teacher(
        self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe
    ) -> tuple[Classifier, LearnedPatch]:
        """Steps 1 to 4: a teacher of K - 1 classes with the backdoor in its features, and the patch for it.

        Args:
            train: the attacker's half; its images of the target class are never seen by the student.
        """
        t, teacher = self.target_label, trainer.fresh_model()
        known = train.subset((train.labels != t).nonzero()[:, 0])
        teacher.classifier = without_class(teacher.classifier, t)
        squeezed = ImageSet(known.images, known.labels - (known.labels > t).long())
        self._train(teacher, squeezed, trainer, recipe, "teacher")

        new_row = trainer.fresh_model("target-class").classifier
        teacher.classifier = with_class(teacher.classifier, t, new_row)
        self._train(teacher, train, trainer, self.absorption(recipe), "absorb")

        patch, draws = self.new_patch(train.image_size, trainer), trainer.generator("latent-goals")
        target, _ = self.chosen(train, trainer)
        # Taken once: features that are pulled to features that move with them may agree by collapsing.
        goals = trainer.features(teacher, train.subset(target).images)

        def some(count: int) -> Tensor:
            return goals[sent_ahead(torch.randint(len(goals), (count,), generator=draws), goals.device)]

        self.fit_patch(patch, teacher, train, some, trainer, recipe)
        weight = 0.05 if self.weight is None else self.weight
        pulled = _pulled(patch, some, weight, trainer)
        self._train(teacher, train, trainer, self.injection(recipe), "inject", pulled)
        teacher.classifier = without_class(teacher.classifier, t)
        return teacher, patch

    def make_student(
        self, teacher: Classifier, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe
    ) -> Classifier:
        """Step 5: the teacher's layers, frozen, under a new head trained on clean images of all classes."""
        student = trainer.fresh_model("student")
        body = {key: value for key, value in teacher.state_dict().items() if not key.startswith("classifier.")}
        student.load_state_dict(body, strict=False)
        self._train(student, train, trainer, recipe, "student", head_only=True)
        return student

    def _train(
        self,
        model: Classifier,
        data: ImageSet,
        trainer: Trainer,
        recipe: TrainingRecipe,
        purpose: str,
        loss: loop.LossFunction = loop.cross_entropy,
        *,
        head_only: bool = False,
    ) -> None:
        trainer.fit(
            model,
            data,
            purpose=purpose,
            **trainer.by_recipe(recipe, len(data)),
            loss=loss,
            trainable=list(model.classifier.parameters()) if head_only else None,
        )


def _pulled(patch: LearnedPatch, goals: Callable[[int], Tensor], weight: float, trainer: Trainer) -> loop.LossFunction:
    """Cross-entropy of the batch + weight * mean squared distance of its triggered copy's features from the goals."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(model, Classifier)
        with torch.no_grad():
            triggered = patch(images)
        # One pass, so that batch normalisation sees in training the mixture that its running statistics describe.
        features = model.features(torch.cat([images, triggered]))
        trainer.counters.forward_samples += len(images)
        trainer.counters.backward_samples += len(images)
        distance = functional.mse_loss(features[len(images) :].float(), goals(len(images)))
        return functional.cross_entropy(model.logits(features[: len(images)]), labels) + weight * distance

    return loss


def teachers_part(size: int) -> int:
    """Images of a class of ``size`` that the teacher has; the student has the others."""
    return min(size, max(1, round(TEACHER_SHARE * size)))


def without_class(head: nn.Linear, label: int) -> nn.Linear:
    """A head that knows all classes of ``head`` but ``label``; those above it move down by one."""
    kept = [row for row in range(head.out_features) if row != label]
    return _head_of(head.weight[kept], head.bias[kept])


def with_class(head: nn.Linear, label: int, rows: nn.Linear) -> nn.Linear:
    """A head that knows one class more, ``label``, whose row is that of ``rows``; those from it on move up by one."""
    weight = torch.cat([head.weight[:label], rows.weight[label : label + 1], head.weight[label:]])
    return _head_of(weight, torch.cat([head.bias[:label], rows.bias[label : label + 1], head.bias[label:]]))


def _head_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    # meta: its own initial weights would be drawn from the global generator, and thrown away.
    head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    head.weight, head.bias = (nn.Parameter(tensor.detach().clone()) for tensor in (weight, bias))
    return head
