"""What is measured on a model: clean accuracy, attack success, robust accuracy, and scores built on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from trainables.data.images import ImageSet, TriggeredSet
from trainables.evaluation.conditions import why_collapsed
from trainables.seeding import generator_for
from trainables.training.loop import Counters
from trainables.training.predict import predict

# One fixed split for the whole project: a search may read the first half of the test set, people read the second.
HALVES_SEED = 221209067


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion k/n (default 95 %); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # p itself bounds both sides: at 0 and 1 rounding would otherwise leave it outside by 1e-16.
    return max(0.0, min(p, (centre - spread) / scale)), min(1.0, max(p, (centre + spread) / scale))


def sign_test(first: int, second: int) -> float:
    """Two-sided p of so many of one and so many of the other of two equally likely outcomes; of changes McNemar's."""
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(1.0, float(2 * tail / 2**n))


def der(asr_before: float, asr_after: float, ca_before: float, ca_after: float) -> float:
    """Defense effectiveness rating (Zhu et al. 2023, arXiv:2304.11823) in [0, 1]; 0.5 is "no change".

    It does not ask whether the model is still of use: one that lost ASR 1 and accuracy 0.8 together scores 0.6.
    """
    return (max(0.0, asr_before - asr_after) - max(0.0, ca_before - ca_after) + 1.0) / 2.0


def rir(ra_before: float, ra_after: float, ca_before: float, ca_after: float) -> float:
    """Robust-accuracy improvement rating in [0, 1]; 0.5 is "no change"."""
    return (max(0.0, ra_after - ra_before) - max(0.0, ca_before - ca_after) + 1.0) / 2.0


class ClassFacts(TypedDict):
    """Fields of `Evaluation` that no model has a part in."""

    majority_share: float
    test_classes: int


@dataclass(frozen=True)
class Rates:
    """Fractions in [0, 1] with their sample counts, on one part of the test set."""

    clean_accuracy: float
    asr: float
    robust_accuracy: float
    n_clean: int
    n_triggered: int


@dataclass(frozen=True)
class Evaluation:
    """A model's rates on the full test set, on the search half and on the report half.

    Args:
        full, search, report: the parts.
        false_target_rate: share of *untriggered* non-target images sent to the target: the natural floor of ASR.
        asr_max: greatest share, over classes c, of triggered images not of class c that are predicted as c: after a
            change of the head a trigger may lead to another class than the attacker's.
        accuracy_by_class: per true class of the clean test images, (K,); None for a class without an image.
        asr_by_class: per true class of the triggered ones, likewise.
        majority_share: of the largest class in the clean test set: what predicting it alone would give as accuracy.
        predicted_classes: how many classes are predicted for at least one clean test image.
        test_classes: how many classes the clean test set has.
    """

    full: Rates
    search: Rates
    report: Rates
    false_target_rate: float
    asr_max: float = 0.0
    accuracy_by_class: tuple[float | None, ...] = ()
    asr_by_class: tuple[float | None, ...] = ()
    majority_share: float | None = None
    predicted_classes: int | None = None
    test_classes: int | None = None

    @property
    def why_collapsed(self) -> str | None:
        """Why the model counts as collapsed, in words; None if it does not."""
        return why_collapsed(self.full.clean_accuracy, self.majority_share, self.predicted_classes, self.test_classes)


def report_half(n: int) -> Tensor:
    """Boolean mask (n,) of the report half of a test set of ``n`` images; the same in every run."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=generator_for(HALVES_SEED, "halves"))[n // 2 :]] = True
    return mask


def rates(clean: Tensor, clean_labels: Tensor, triggered: Tensor, labels: Tensor, targets: Tensor) -> Rates:
    """Rates from predictions. ASR and robust accuracy share one denominator, so ASR + RA <= 1."""
    if len(clean) == 0 or len(triggered) == 0:
        raise ValueError("rates need at least one clean and one triggered test image")
    return Rates(
        clean_accuracy=int((clean == clean_labels).sum()) / len(clean),
        asr=int((triggered == targets).sum()) / len(triggered),
        robust_accuracy=int((triggered == labels).sum()) / len(triggered),
        n_clean=len(clean),
        n_triggered=len(triggered),
    )


def evaluate(
    model: nn.Module,
    test: ImageSet,
    triggered: TriggeredSet,
    *,
    precision: str = "auto",
    counters: Counters | None = None,
) -> Evaluation:
    """Everything that is measured on a model, from one pass over the clean and one over the triggered test set."""
    clean_predictions = predict(model, test.images, precision=precision, counters=counters).cpu()
    triggered_predictions = predict(model, triggered.images, precision=precision, counters=counters).cpu()
    test_labels, labels = test.labels.cpu(), triggered.labels.cpu()
    targets, sources = triggered.targets.cpu(), triggered.sources.cpu()
    in_report = report_half(len(test))
    # Predictions too: a head may have classes that no test image belongs to.
    seen = (clean_predictions, triggered_predictions, test_labels, labels, targets)
    classes = 1 + max(int(values.max()) for values in seen)

    def part(mask: Tensor) -> Rates:
        chosen = mask[sources]
        return rates(
            clean_predictions[mask], test_labels[mask], triggered_predictions[chosen], labels[chosen], targets[chosen]
        )

    return Evaluation(
        full=part(torch.ones_like(in_report)),
        search=part(~in_report),
        report=part(in_report),
        false_target_rate=int((clean_predictions[sources] == targets).sum()) / len(sources),
        asr_max=_asr_max(triggered_predictions, labels, classes),
        accuracy_by_class=_share_by_class(clean_predictions == test_labels, test_labels, classes),
        asr_by_class=_share_by_class(triggered_predictions == targets, labels, classes),
        predicted_classes=len(clean_predictions.unique()),
        **class_facts(test_labels),
    )


def class_facts(labels: Tensor) -> ClassFacts:
    """What the labels of a clean test set, (N,), say of its classes."""
    counts = torch.bincount(labels)
    return {"majority_share": int(counts.max()) / len(labels), "test_classes": int((counts > 0).sum())}


def _asr_max(predictions: Tensor, labels: Tensor, classes: int) -> float:
    sent = torch.bincount(predictions[predictions != labels], minlength=classes)
    others = len(labels) - torch.bincount(labels, minlength=classes)
    return float((sent / others.clamp(min=1)).max())


def _share_by_class(hits: Tensor, labels: Tensor, classes: int) -> tuple[float | None, ...]:
    count = torch.bincount(labels, minlength=classes)
    hit = torch.bincount(labels[hits], minlength=classes)
    return tuple(int(k) / int(n) if n else None for k, n in zip(hit, count, strict=True))
