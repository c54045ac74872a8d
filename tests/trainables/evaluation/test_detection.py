"""Detection quality against hand-computed cases and scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from trainables.attacks.base import Kind
from trainables.defenses.base import Repair
from trainables.evaluation.detection import auroc, average_precision, detection_columns
from trainables.models.classifier import Classifier

NO_MODEL: Classifier = None  # type: ignore[assignment] - no column looks at it
LABELS = torch.tensor([0, 1, 2, 3])


def test_auroc_of_hand_computed_cases() -> None:
    positive = torch.tensor([True, True, False, False])
    assert auroc(torch.tensor([4.0, 3.0, 2.0, 1.0]), positive) == 1.0
    assert auroc(torch.tensor([1.0, 2.0, 3.0, 4.0]), positive) == 0.0
    assert auroc(torch.tensor([1.0, 4.0, 3.0, 2.0]), positive) == 0.5
    assert auroc(torch.ones(4), positive) == 0.5
    assert auroc(torch.ones(4), torch.ones(4, dtype=torch.bool)) is None


@pytest.mark.parametrize("levels", [3, 1000])
def test_scores_with_and_without_ties_agree_with_scikit_learn(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(300, generator=generator) < 0.1
    scores = torch.randint(0, levels, (300,), generator=generator) + positive * levels // 4
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))


def test_rates_count_poison_and_clean_and_leave_cross_samples_out() -> None:
    # 2 poisoned, 2 cross, 4 clean; removed: one poisoned, one cross, one clean.
    kinds = torch.tensor([Kind.POISON, Kind.POISON, Kind.CROSS, Kind.CROSS, 0, 0, 0, 0], dtype=torch.uint8)
    scores = torch.tensor([9.0, 1.0, 8.0, 8.0, 2.0, 0.0, 0.0, 0.0])
    repair = Repair(NO_MODEL, scores=scores, removed=torch.tensor([0, 2, 4]))
    found = detection_columns(repair, kinds, torch.tensor([3, 3]), torch.full((8,), 3))
    assert found["detection_removed"] == 3 / 8
    assert found["detection_tpr"] == 1 / 2
    assert found["detection_fpr"] == 1 / 4
    assert found["detection_precision"] == 1 / 3
    assert found["detection_auroc"] == 7 / 8
    assert found["detection_auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert "flagged_classes" not in found


def test_flagged_classes_are_compared_with_the_targets() -> None:
    def columns(flagged: tuple[int, ...], targets: list[int]) -> tuple[object, ...]:
        found = detection_columns(
            Repair(NO_MODEL, flagged_classes=flagged), torch.zeros(4, dtype=torch.uint8), torch.tensor(targets), LABELS
        )
        return found["flagged_classes"], found["target_flagged"], found["false_classes"]

    assert columns((7, 0), [0, 0, 0]) == ([0, 7], True, 1)
    assert columns((7,), [0]) == ([7], False, 1)
    assert columns((), [0]) == ([], False, 0)
    assert columns((1,), [0, 1, 2]) == ([1], False, 0)
    assert columns((4,), []) == ([4], None, 1)


def test_on_clean_data_false_alarms_are_told_and_hits_are_not_made_up() -> None:
    repair = Repair(NO_MODEL, scores=torch.arange(4.0), removed=torch.tensor([3]))
    found = detection_columns(repair, torch.zeros(4, dtype=torch.uint8), torch.tensor([], dtype=torch.int64), LABELS)
    assert found["detection_fpr"] == 1 / 4
    assert found["detection_precision"] == 0.0
    assert found["detection_tpr"] is None
    assert found["detection_auroc"] is None


def test_a_defense_that_detects_nothing_has_no_columns() -> None:
    assert detection_columns(Repair(NO_MODEL), torch.zeros(4, dtype=torch.uint8), torch.tensor([0]), LABELS) == {}


def ten_classes(rate: float, n: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Kinds and released labels of ``n`` images of ten classes, a share of each relabelled to class 0."""
    labels = torch.arange(n) % 10
    kinds = torch.zeros(n, dtype=torch.uint8)
    kinds[: round(rate * n)] = Kind.POISON
    labels[kinds == Kind.POISON] = 0
    return kinds, labels


def most_suspect(scores: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """Indices of the ``share`` of every class with the highest scores."""
    found = []
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        found.append(own[scores[own].argsort(descending=True)[: int(share * len(own))]])
    return torch.cat(found)


@pytest.mark.parametrize(("rate", "ceiling"), [(0.1, 0.28), (0.02, 0.85)])
def test_even_a_perfect_score_finds_no_more_than_the_ceiling_of_what_is_removed_of_every_class(
    rate: float, ceiling: float
) -> None:
    kinds, labels = ten_classes(rate)
    scores = (kinds == Kind.POISON).double()
    repair = Repair(NO_MODEL, scores=scores, removed=most_suspect(scores, labels, 0.15))
    found = detection_columns(repair, kinds, torch.tensor([0]), labels)
    assert found["detection_tpr"] == found["detection_ceiling_classes"] == pytest.approx(ceiling, abs=0.01)
    assert found["detection_ceiling_share"] == 1.0  # who may choose where to remove as many could have all
    assert found["detection_removed_target"] == pytest.approx(0.15, abs=0.01)
    assert found["detection_auroc_target"] == found["detection_auprc_target"] == 1.0


def test_a_score_that_knows_the_class_alone_is_nothing_within_it() -> None:
    kinds, labels = ten_classes(0.1)
    repair = Repair(NO_MODEL, scores=(labels == 0).double())
    found = detection_columns(repair, kinds, torch.tensor([0]), labels)
    assert found["detection_auroc"] > 0.9
    assert found["detection_auroc_target"] == 0.5
    assert "detection_ceiling_share" not in found, "nothing was removed"


def test_who_removes_little_in_all_finds_little() -> None:
    kinds, labels = ten_classes(0.1)
    repair = Repair(NO_MODEL, removed=(labels == 0).nonzero()[:10, 0])
    found = detection_columns(repair, kinds, torch.tensor([0]), labels)
    assert found["detection_ceiling_share"] == found["detection_ceiling_classes"] == 0.1


def test_cross_samples_of_the_target_class_count_on_neither_side() -> None:
    kinds = torch.tensor([Kind.POISON, Kind.CROSS, 0, 0], dtype=torch.uint8)
    repair = Repair(NO_MODEL, scores=torch.tensor([2.0, 3.0, 1.0, 9.0]))
    found = detection_columns(repair, kinds, torch.tensor([0]), torch.tensor([0, 0, 0, 1]))
    assert found["detection_auroc_target"] == 1.0


def test_several_target_classes_count_by_their_poison() -> None:
    kinds = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.uint8)
    scores = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 2.0])  # perfect in class 0, the wrong way round in class 1
    found = detection_columns(
        Repair(NO_MODEL, scores=scores), kinds, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    )
    assert found["detection_auroc_target"] == 3 / 4


def test_without_poison_in_the_target_class_nothing_is_said_of_it() -> None:
    repair = Repair(NO_MODEL, scores=torch.arange(4.0), removed=torch.tensor([3]))
    for targets in (torch.tensor([0]), torch.tensor([], dtype=torch.int64)):
        found = detection_columns(repair, torch.zeros(4, dtype=torch.uint8), targets, LABELS)
        said = {name: value for name, value in found.items() if name.endswith("_target") or "ceiling" in name}
        assert len(said) == 5
        assert set(said.values()) == {None}
