"""Conditions name what failed: the largest class of an imbalanced set is no accuracy, a constant output no backdoor."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from trainables.data.images import ImageSet, TriggeredSet
from trainables.evaluation.conditions import Conditions, collapsed_accuracy, why_collapsed, why_not_implanted
from trainables.evaluation.metrics import Evaluation, class_facts, evaluate

WORKS = Conditions(
    asr=0.99,
    clean_accuracy=0.92,
    asr_base=0.01,
    control_accuracy=0.94,
    majority_share=0.1,
    predicted_classes=10,
    test_classes=10,
)


class Constant(nn.Module):
    """Predicts one class, whatever it sees."""

    def __init__(self, label: int, classes: int) -> None:
        super().__init__()
        self.output = torch.nn.functional.one_hot(torch.tensor(label), classes).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.output.repeat(len(images), 1)


def measured(model: nn.Module, labels: list[int], target: int = 0) -> Evaluation:
    given = torch.tensor(labels)
    images = torch.zeros(len(given), 3, 8, 8, dtype=torch.uint8)
    others = (given != target).nonzero()[:, 0]
    triggered = TriggeredSet(images[others], given[others], torch.full_like(others, target), others)
    return evaluate(model, ImageSet(images, given), triggered, precision="float32")


def test_a_working_backdoor_in_a_good_model_is_one() -> None:
    assert why_not_implanted(WORKS) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"asr": 0.79}, "ASR 0.790 is below 0.8"),
        ({"asr": 0.9, "asr_base": 0.41}, "ASR 0.900 is not 0.5 above what the trigger does to a clean model (0.410)"),
        ({"clean_accuracy": 0.88}, "clean accuracy 0.880 is more than 5 points below that of a clean model trained"),
        ({"clean_accuracy": 0.19, "control_accuracy": 0.2}, "the model collapsed: clean accuracy 0.190, where"),
        ({"predicted_classes": 4}, "the model collapsed: it predicts 4 of 10 classes"),
    ],
)
def test_the_condition_that_failed_is_named(change: dict[str, float], said: str) -> None:
    why = why_not_implanted(dataclasses.replace(WORKS, **change))
    assert why is not None
    assert said in why
    assert ";" not in why, "the others hold"


def test_all_conditions_that_failed_are_named() -> None:
    why = why_not_implanted(dataclasses.replace(WORKS, asr=0.3, clean_accuracy=0.12, predicted_classes=2))
    assert why is not None
    assert [part.split()[0] for part in why.split("; ")] == ["ASR", "ASR", "the", "clean"]


@pytest.mark.parametrize(
    "change",
    [
        {"asr": 0.8, "asr_base": 0.3},  # 0.8 - 0.3 < 0.5 in binary
        {"clean_accuracy": 0.89},  # 0.94 - 0.05 > 0.89 in binary
        {"clean_accuracy": 0.99},  # better than its control
        {"predicted_classes": 5},
        {"asr_base": None, "control_accuracy": None, "majority_share": None, "predicted_classes": None},
    ],
)
def test_borders_belong_to_the_backdoor_and_what_is_not_known_is_not_asked(change: dict[str, float | None]) -> None:
    assert why_not_implanted(dataclasses.replace(WORKS, **change)) is None


def test_accuracy_is_compared_with_the_largest_class() -> None:
    assert collapsed_accuracy(0.1) == pytest.approx(0.19)
    assert collapsed_accuracy(0.9) == pytest.approx(0.91)
    assert why_collapsed(0.91, 0.9, 10, 10)
    assert not why_collapsed(0.92, 0.9, 10, 10)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_a_constant_predictor_is_collapsed_on_any_imbalanced_set(share: float) -> None:
    """Its accuracy is the share of the largest class: twice chance or more, which once counted as a repair."""
    labels = [1] * round(100 * share) + [0, 2] * ((100 - round(100 * share)) // 2)
    for target in (0, 1):  # ASR 0, where it predicts another class than the attacker's, or ASR 1
        seen = measured(Constant(1, 3), labels, target)
        assert seen.full.asr == target
        assert seen.majority_share == seen.full.clean_accuracy == pytest.approx(share)
        assert seen.why_collapsed is not None
        assert "predicting the largest class alone gives" in seen.why_collapsed


def test_a_model_that_predicts_fewer_than_half_of_the_classes_is_collapsed() -> None:
    class Halves(nn.Module):
        """Predicts what the first pixel says, of the first ``kept`` classes alone."""

        def __init__(self, kept: int) -> None:
            super().__init__()
            self.kept = kept

        def forward(self, images: Tensor) -> Tensor:
            label = (images[:, 0, 0, 0] * 255).round().long()
            return torch.nn.functional.one_hot(torch.where(label < self.kept, label, 0), 10).float()

    labels = torch.arange(100) % 10
    images = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    others = (labels != 0).nonzero()[:, 0]
    triggered = TriggeredSet(images[others], labels[others], torch.zeros_like(others), others)
    for kept, fails in ((4, True), (5, False)):
        seen = evaluate(Halves(kept), ImageSet(images, labels), triggered, precision="float32")
        assert seen.predicted_classes == kept
        assert seen.full.clean_accuracy == kept / 10
        assert (seen.why_collapsed is not None) == fails


def test_only_classes_of_the_test_set_count() -> None:
    assert class_facts(torch.tensor([7, 7, 9])) == {"majority_share": 2 / 3, "test_classes": 2}
