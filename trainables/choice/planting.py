"""A backdoor of the defender's own, planted gently into a copy of the suspicious model."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainables.choice.base import Attempt, Candidate, Suspect
from trainables.choice.highest_peak import allows
from trainables.choice.own_triggers import KINDS, OwnTrigger
from trainables.data.images import ImageSet
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed
from trainables.training.loop import Counters, DivergedError
from trainables.training.predict import predict

# Gentle: few triggered images per batch, a low rate, and no step more than it needs. What is planted hard, by half of
# each batch over many steps, hides more of the settings that are too weak (docs/choosing.md).
SHARE, RATE, GOAL, MOST_STEPS, LOOK_EVERY = 0.1, 0.01, 0.95, 600, 10
# Images per step, at most half of the training part: with the quarter that repairs have, the few triggered ones of a
# step pull at a small model so hard that it loses its clean accuracy.
BATCH = 64
# Below this the copy holds no backdoor whose removal would say anything.
PLANTED_ASR = 0.9
# Points of validation accuracy that planting may cost; one image where that is more.
DROP = 0.02


@dataclass
class Copy:
    """A copy of the suspicious model that obeys a trigger of the defender's own. It is measured, and never handed over.

    Args:
        kind: of the trigger.
        target: class that its triggered images go to.
        suspect: the copy, to try candidates on.
        asr: share of the defender's own triggered images that go to the target.
        accuracy: validation accuracy of the copy.
        why_not: what makes it useless, in words; None if it is sound.
        steps: of the planting.
        work: of planting and looking.
        triggered: uint8 (M, 3, H, W), all own images of other classes with the trigger.
    """

    kind: str
    target: int
    suspect: Suspect
    asr: float
    accuracy: float
    why_not: str | None
    steps: int
    work: Counters
    triggered: Tensor
    _obeyed: dict[Candidate, tuple[int, Counters]] = field(default_factory=dict, repr=False)

    def obeyed(self, candidate: Candidate) -> tuple[int, Counters]:
        """How many triggered images still go to the target after ``candidate``, and the work of looking; all of them
        where it diverged.
        """
        if candidate not in self._obeyed:
            attempt, bench, hits = self.suspect.attempt(candidate), self.suspect.bench(), len(self.triggered)
            if attempt.model is not None:
                model = attempt.model.to(bench.device)
                hits = _obeyed(model, self.triggered, self.target, bench.precision, bench.counters)
            self._obeyed[candidate] = hits, bench.counters
            self.suspect.without_model(candidate)  # thirteen candidates by three copies would fill a memory
        return self._obeyed[candidate]

    def known(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` was tried on it, and looked at."""
        return candidate in self._obeyed

    def enter(self, attempt: Attempt, hits: int, looking: Counters) -> None:
        """Take over what `Suspect.attempt` and `obeyed` gave elsewhere, on the same copy."""
        self.suspect.enter(attempt)
        self._obeyed[attempt.candidate] = hits, looking

    def to(self, device: torch.device) -> Copy:
        """The same copy with nothing tried yet, to try candidates on another device or in another process."""
        moved = dataclasses.replace(self, suspect=self.suspect.to(device), triggered=self.triggered.to(device))
        moved._obeyed = {}
        return moved


@exact_float32()
def plant(suspect: Suspect, kind: str, target: int) -> Copy:
    """Train a copy of ``suspect`` on its own images, some of each batch triggered, until it obeys and is accurate."""
    bench, images = suspect.bench(), suspect.images
    trigger = KINDS[kind](images.train.image_size, bench.generator("planted", kind))
    model = copy.deepcopy(suspect.model)
    held_out = triggered_images(trigger, images.validation, target)
    before = bench.accuracy(model, images.validation)
    batch = max(2, min(BATCH, len(images.train) // 2))
    count = math.ceil(SHARE * batch)
    steps = 0

    def with_trigger(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (labels != target).nonzero()[:count, 0]
        pixels, labels = pixels.clone(), labels.clone()
        pixels[chosen], labels[chosen] = trigger(pixels[chosen]), target
        return pixels, labels

    def keeps_accuracy() -> bool:
        return allows(bench.accuracy(model, images.validation), before, DROP, len(images.validation))

    def obeys(step: int) -> bool:
        nonlocal steps
        steps = step + 1
        if steps % LOOK_EVERY:
            return False
        hits = _obeyed(model, held_out, target, bench.precision, bench.counters)
        # The first steps cost accuracy, which comes back while the copy goes on seeing clean images.
        return hits >= GOAL * len(held_out) and keeps_accuracy()

    why_not, rate, accuracy = None, 0.0, 0.0
    all_images = triggered_images(trigger, own_images(suspect), target)
    devices = [bench.device] if bench.device.type == "cuda" else []
    try:
        # Dropout of other people's models draws from the global stream; see `carry_out`.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(bench.seed, "global", kind))
            bench.fit(
                model,
                images.train,
                purpose=f"plant-{kind}",
                steps=MOST_STEPS,
                lr_at=lambda _step: RATE,
                batch_size=batch,
                augmentation=bench.augmentation(),
                transform=with_trigger,
                until=obeys,
            )
        rate = _obeyed(model, all_images, target, bench.precision, bench.counters) / max(1, len(all_images))
        accuracy = bench.accuracy(model, images.validation)
    except DivergedError:
        why_not = "its training diverged"
    if why_not is None and rate < PLANTED_ASR:
        why_not = f"only {rate:.3f} of its triggered images obey, {PLANTED_ASR:g} are needed"
    elif why_not is None and not allows(accuracy, before, DROP, len(images.validation)):
        why_not = f"planting took validation accuracy from {before:.3f} to {accuracy:.3f}"
    planted = Suspect(model, images, suspect.trainer)
    return Copy(kind, target, planted, rate, accuracy, why_not, steps, bench.counters, all_images)


def own_images(suspect: Suspect) -> ImageSet:
    """Training and validation part together: the validation part alone is too few to measure a rate on."""
    train, validation = suspect.images.train, suspect.images.validation
    return ImageSet(torch.cat([train.images, validation.images]), torch.cat([train.labels, validation.labels]))


def triggered_images(trigger: OwnTrigger, images: ImageSet, target: int) -> Tensor:
    """The images of other classes than ``target``, with the trigger; uint8 (M, 3, H, W)."""
    return trigger.stamp(images.images[images.labels != target])


def _obeyed(model: Classifier, triggered: Tensor, target: int, precision: str, counters: Counters) -> int:
    return int((predict(model, triggered, precision=precision, counters=counters) == target).sum())
