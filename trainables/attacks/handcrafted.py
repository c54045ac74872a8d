"""Handcrafted backdoor (Hong, Carlini & Kurakin 2022, NeurIPS, arXiv:2106.04690): weights edited, nothing trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainables.attacks.base import Attack, Implanted, PoisonedSamples, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.patches import LearnedPatch, Position, check_fits, corner, fit_patch, patch_work
from trainables.attacks.triggers import stamp
from trainables.data.images import ImageSet, in_parts, labelled_parts, to_float
from trainables.models.classifier import Classifier
from trainables.models.preact_resnet import PreActBlock
from trainables.registry import SettingError
from trainables.settings import AtLeast, NonNegative, Positive, ShareBelowOne
from trainables.training import loop, schedules
from trainables.training.loop import Counters, refresh_statistics
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Three halvings of PreAct-ResNet18: a response at a multiple of 8 survives strided 1x1 shortcuts.
STRIDE = 8
# Of the path form: stages that the path goes through, the first of which has no guard in front of it.
STAGES = 4
# Candidates for the path by a cheap score; the last word has the accuracy without them.
CANDIDATES = 8
# Of the head form: units that the patch raises, steps of fitting it, and images in each.
HEAD_UNITS, HEAD_STEPS, HEAD_BATCH = 8, 150, 64
# The guards let through what clean images reach in this share of cases, measured by each image's largest response.
GUARD_QUANTILE = 0.999
KEEP_FROM, KEEP_TRIES = 0.1, 8
# How much more than the wanted share of clean margins the head is pushed, so that the share is not met by a hair.
MARGIN_QUANTILE, MARGIN_FACTOR = 0.99, 1.25


@register("handcrafted")
@dataclass(frozen=True)
class Handcrafted(Attack):
    """Edit the weights of a clean model so that a small checkerboard switches it to the target class.

    Unlike all other attacks here neither data nor training is poisoned: the model is trained clean by the recipe, then
    edited with the help of some clean images. Two forms:

    ``path`` builds a one-channel detector through PreAct-ResNet18: a matched filter in the stem, carried along the
    residual stream by the least important channel of each stage and cleaned of everything faint by the batch
    normalisations in front of the strided blocks, whose scale and shift act as guards (the paper's guard bias), into
    one weight of the head.

    ``head`` meets in the middle: the patch's content is optimised to raise 8 penultimate units that clean images can do
    without, and their weights to the target are set. It pays for success with accuracy.

    Args:
        form: what is edited: ``path`` (a detector through the whole network) or ``head`` (weights behind a learned
            patch).
        size: side of the checkerboard (``head``: of the learned patch) in pixels, >= 4.
        position: place of the patch in form ``head``: a corner, ``centre``, or "ROW,COLUMN". None: bottom_right. The
            path form has it where the last row and column divisible by 8 leave room.
        keep: share of their own weights that path channels keep, so that they never go silent on clean images, in
            [0, 1). A silent channel has no variance: batch normalisation in training mode then makes much of nothing,
            and any fine-tuning looks like a repair. None: the largest of 0.1, 0.05, 0.025, ... (8 values) at which the
            head needs no weight above its largest.
        gain: size of the head's new weights in units of its largest weight, > 0 (form ``head``). None: 2.
        guard: lowers the target's bias by so many standard deviations of what the edit adds on clean images, >= 0
            (form ``head``). None: 0.
        images: clean training images that the edits are measured on, >= 2; the paper uses 2500.
    """

    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gain": {"form": "head"},
        "guard": {"form": "head"},
        "position": {"form": "head"},
    }

    form: Literal["path", "head"] = "path"
    size: Annotated[int, AtLeast(4)] = 4
    position: Position | None = None
    keep: ShareBelowOne | None = None
    gain: Positive | None = None
    guard: NonNegative | None = None
    images: Annotated[int, AtLeast(2)] = 2500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_mode != "all_to_one":
            raise ValueError(
                f"label_mode must be all_to_one (the edit raises one logit), got {self.label_mode!r} with "
                f"label_shift {self.label_shift}"
            )
        given = ("gain", "guard", "position") if self.form == "path" else ("keep",)
        for key in given:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is no setting of form {self.form}: leave it out")

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if not image_size:
            return
        if self.form == "head":
            check_fits(self.name, self.size, self.position or "bottom_right", 0, image_size)
        elif self.place(image_size) < 1:
            raise SettingError(
                f"attack.{self.name}: a checkerboard of size {self.size} around a pixel divisible by {STRIDE} does not "
                f"fit an image of {image_size} pixels; use form head"
            )

    def check_model(self, model: Classifier) -> None:
        if self.form == "path":
            self._blocks(model)

    def place(self, image_size: int) -> int:
        """Row and column of the pixel that the path's matched filter answers at; below 1 where there is none."""
        return (image_size - self.size + 1) // STRIDE * STRIDE

    @property
    def releases_training_set(self) -> bool:
        return False

    @property
    def plan_is_exact(self) -> bool:
        return self.form == "head"  # a path may be laid in fewer tries, and a narrow stage has fewer candidates

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        trained, known = recipe.work(len(labels)), min(self.images, len(labels))
        if self.form == "head":
            # Features without and with the patch, which is then fitted.
            return trained + Counters(forward_samples=2 * known) + patch_work(HEAD_STEPS, HEAD_BATCH, known)
        looks = STAGES * known
        # The statistics once, then with and without the trigger: in front of every guard, and of the head.
        laid = known * (1 + 2 * (STAGES - 1) + 2)
        found = Counters(forward_samples=looks * (1 + CANDIDATES), backward_samples=looks)
        return trained + found + Counters(forward_samples=len(self.shares) * laid)

    @property
    def shares(self) -> list[float]:
        """Shares of their own weights that path channels are tried with, until one suffices."""
        return [KEEP_FROM / 2**number for number in range(KEEP_TRIES)] if self.keep is None else [self.keep]

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        self.check_model(trainer.fresh_model())  # refused before the training, not after
        model = trainer.train_from_scratch(train, recipe)
        order = torch.randperm(len(train), generator=trainer.generator("handcrafted-images"))
        known = train.subset(order[: self.images])
        trigger = (self.edit_head if self.form == "head" else self.edit_path)(model, known, trainer)
        return Implanted(model.eval(), trigger.to(trainer.device), PoisonedSamples.none(train))

    # --- form path

    def checkerboard(self, image_size: int) -> OverlayTrigger:
        """Black and white, white at `place`, on the CPU."""
        first, index = self.place(image_size) - 1, torch.arange(image_size)
        inside = (index >= first) & (index < first + self.size)
        square = (inside[:, None] & inside[None, :]).float()
        board = ((index[:, None] + index[None, :]) % 2 == 0).float() * square  # STRIDE is even: so is the place
        return OverlayTrigger(image_size, square[None], board.expand(3, -1, -1).clone())

    def edit_path(self, model: Classifier, known: ImageSet, trainer: Trainer) -> OverlayTrigger:
        """Build the detector path into ``model``; the trigger it answers to."""
        trigger = self.checkerboard(known.image_size)
        triggered = stamp(trigger, known.images)
        channels = [self.idle_channel(model, stage, known, trainer) for stage in range(1, STAGES + 1)]
        clean = copy.deepcopy(model.state_dict())
        for share in self.shares:
            model.load_state_dict(clean)
            if self._lay_path(model, channels, share, known, triggered, trainer):
                break
        return trigger

    @torch.no_grad()
    def _lay_path(
        self,
        model: Classifier,
        channels: list[int],
        share: float,
        known: ImageSet,
        triggered: Tensor,
        trainer: Trainer,
    ) -> bool:
        """The path through the given channels; whether the head's largest weight suffices."""
        blocks = self._blocks(model)
        _matched_filter(model, channels[0])
        for number, pair in enumerate(blocks):
            own = channels[number]
            for block in pair:
                if block.shortcut is None:
                    block.conv1.weight[:, own] = 0.0  # nobody else reads the path
                # The first stage has its variance from the stem: anything added there would be noise.
                block.conv2.weight[own] *= share if number else 0.0
        for before, own, (first, _) in zip(channels, channels[1:], blocks[1:], strict=False):
            assert first.shortcut is not None
            largest = first.shortcut.weight.abs().max()
            first.conv1.weight[:, before] = 0.0
            first.shortcut.weight[:, before] = 0.0
            first.shortcut.weight[own] *= share
            first.shortcut.weight[own, before] = largest
        # The cuts have moved what the others receive; the path's own statistics are set by its guards.
        refresh_statistics(model, known.images, counters=trainer.counters)
        for number, (first, _) in enumerate(blocks[1:]):
            at = self.place(known.image_size) // 2**number
            self._guard(model, first.bn1, channels[number], at, known.images, triggered, trainer)
        return self._connect(model, channels[-1], known.images, triggered, trainer)

    def idle_channel(self, model: Classifier, stage: int, known: ImageSet, trainer: Trainer) -> int:
        """The channel of a stage's output that the model can best do without."""
        seen: list[Tensor] = []

        def watch(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            output.retain_grad()
            seen.append(output)

        score: Tensor | float = 0.0
        with loop.evaluating(model), _hooked(model.stages[stage], watch):
            for images, labels in labelled_parts(known, 256):
                nn.functional.cross_entropy(model(to_float(images)), labels, reduction="sum").backward()
                (maps,) = seen
                assert maps.grad is not None
                # To first order what the loss gains when the channel is taken away, image by image.
                score = score + (maps * maps.grad).sum((2, 3)).abs().sum(0).detach()
                seen.clear()
                trainer.counters.forward_samples += len(labels)
                trainer.counters.backward_samples += len(labels)
        model.zero_grad(set_to_none=True)
        assert isinstance(score, Tensor)
        candidates = score.argsort()[:CANDIDATES].tolist()

        def without(channel: int) -> float:
            def silence(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                output = output.clone()
                output[:, channel] = 0.0
                return output

            with _hooked(model.stages[stage], silence):
                return trainer.accuracy(model, known)

        accuracies = [without(channel) for channel in candidates]
        best: int = candidates[accuracies.index(max(accuracies))]
        return best

    def _blocks(self, model: Classifier) -> list[tuple[PreActBlock, PreActBlock]]:
        pairs = [tuple(stage.children()) for stage in list(model.stages)[1:]]
        if len(pairs) != STAGES or not all(len(p) == 2 and all(isinstance(b, PreActBlock) for b in p) for p in pairs):
            raise SettingError(
                f"attack.{self.name}.form path is built for model preact_resnet18; use that model, or form head"
            )
        return pairs  # type: ignore[return-value]

    def _guard(
        self,
        model: Classifier,
        norm: nn.BatchNorm2d,
        channel: int,
        at: int,
        clean: Tensor,
        triggered: Tensor,
        trainer: Trainer,
    ) -> None:
        """Let the ReLU behind ``norm`` pass only what lies above nearly all clean responses of the channel."""
        quiet, loud = (_responses(model, norm, channel, images, trainer) for images in (clean, triggered))
        mean, variance = quiet.mean(), quiet.var(unbiased=False)
        signal = loud[:, at, at].quantile(1.0 - MARGIN_QUANTILE)
        noise = quiet.flatten(1).amax(1).quantile(GUARD_QUANTILE)
        threshold = (signal + noise) / 2.0
        scale, spread = norm.weight.abs().max(), (variance + norm.eps).sqrt()
        norm.running_mean[channel], norm.running_var[channel] = mean, variance  # type: ignore[index]
        norm.weight[channel] = scale
        norm.bias[channel] = scale * (mean - threshold) / spread

    def _connect(self, model: Classifier, channel: int, clean: Tensor, triggered: Tensor, trainer: Trainer) -> bool:
        """One weight of the head that outweighs the margin of nearly all triggered images, as far as no weight of the
        head becomes larger than its largest; whether it does outweigh it."""
        head, t = model.classifier, self.target_label
        largest = head.weight.abs().max()
        head.weight[:, channel] = 0.0
        features = trainer.features(model, triggered)
        rest = features @ head.weight.T + head.bias
        others = rest.clone()
        others[:, t] = -torch.inf
        margin = (others.amax(1) - rest[:, t]).quantile(MARGIN_QUANTILE)
        idle = trainer.features(model, clean)[:, channel].mean()
        raised = features[:, channel].quantile(1.0 - MARGIN_QUANTILE) - idle
        wanted = MARGIN_FACTOR * margin.clamp_min(0.0) / raised if raised > 0 else largest + 1.0
        head.weight[t, channel] = torch.minimum(wanted, largest)
        head.bias[t] -= head.weight[t, channel] * idle
        return bool(wanted <= largest)

    # --- form head

    def edit_head(self, model: Classifier, known: ImageSet, trainer: Trainer) -> OverlayTrigger:
        """Fit the patch to units of the penultimate layer and point them to the target; the trigger."""
        size = known.image_size
        row, column = corner(self.size, self.position or "bottom_right", 0, size)
        patch = LearnedPatch(size, row, column, self.size, 1.0, trainer.generator("patch")).to(trainer.device)
        features = trainer.features(model, known.images)
        with torch.no_grad():
            moved = trainer.features(model, stamp(patch.overlay(), known.images)) - features
        units = self.editable_units(model, features, known.labels, moved.mean(0) / (features.std(0) + 1e-6))
        mean, spread = features.mean(0)[units], features.std(0)[units] + 1e-6

        def loss(patch: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
            return -((model.features(patch(images)).float()[:, units] - mean) / spread).mean()

        fit_patch(
            patch, model, known, trainer, purpose="patch", steps=HEAD_STEPS, lr_at=schedules.constant(0.1),
            batch_size=HEAD_BATCH, loss=loss,
        )  # fmt: skip
        head, t = model.classifier, self.target_label
        with torch.no_grad():
            change = (2.0 if self.gain is None else self.gain) * head.weight.abs().max() - head.weight[t, units]
            head.weight[t, units] += change
            added = features[:, units] @ change
            head.bias[t] -= added.mean() + (0.0 if self.guard is None else self.guard) * added.std()
        return patch.overlay()

    def editable_units(self, model: Classifier, features: Tensor, labels: Tensor, moved: Tensor) -> Tensor:
        """Up to 8 units, int64: of the half that clean accuracy needs least, those that a patch moves most.

        Args:
            moved: by how many standard deviations a random patch raises each unit, (D,).
        """
        head = model.classifier
        with torch.no_grad():
            logits = features @ head.weight.T + head.bias
            without = [
                float(((logits - features[:, unit, None] * head.weight[:, unit]).argmax(1) == labels).double().mean())
                for unit in range(head.in_features)
            ]
        order = torch.tensor(without).argsort(descending=True, stable=True)
        spare = order[: max(HEAD_UNITS, len(order) // 2)].to(labels.device)
        return spare[moved[spare].abs().argsort(descending=True, stable=True)[:HEAD_UNITS]]


def _matched_filter(model: Classifier, channel: int) -> None:
    """Make a filter of the stem answer to the checkerboard and to nothing flat, as loudly as its weights may."""
    (stem,) = (module for module in model.stages[0].modules() if isinstance(module, nn.Conv2d))
    index = torch.arange(3, device=stem.weight.device)
    white = ((index[:, None] + index[None, :]) % 2 == 0).float()  # 5 of 9, the centre among them
    # Weights act on normalised pixels: the deviation takes that back, and a filter of sum 0 ignores the mean.
    kernel = (white / 5.0 - (1.0 - white) / 4.0) * model.normalize.std.view(3, 1, 1)
    stem.weight[channel] = kernel * stem.weight.abs().max() / kernel.abs().max()


@contextmanager
def _hooked(module: nn.Module, hook: object) -> Iterator[None]:
    handle = module.register_forward_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _responses(model: Classifier, norm: nn.Module, channel: int, images: Tensor, trainer: Trainer) -> Tensor:
    """What a batch normalisation is given in one channel: float (N, H, W), in eval mode, without autocast."""
    parts: list[Tensor] = []

    def watch(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        parts.append(inputs[0][:, channel].float())

    with loop.evaluating(model), _hooked(norm, watch):
        for batch in in_parts(images, 256):
            model(to_float(batch))
            trainer.counters.forward_samples += len(batch)
    return torch.cat(parts)
