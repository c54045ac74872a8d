"""Membership inference against hand-computed cases; chance is chance."""

import math

import pytest
import torch

from trainables.evaluation.aftermath.membership import (
    Group,
    available_pairs,
    balanced_quotas,
    best_threshold,
    cross_entropy,
    draw_group,
    draw_pairs,
    judged,
    likelihood_ratio,
    modified_entropy,
    scaled_confidence,
    true_positive_rate,
)

LOGITS = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_scores_of_a_hand_computed_prediction() -> None:
    """Probabilities (0.7, 0.2, 0.1)."""
    assert cross_entropy(LOGITS, labels(0)).item() == pytest.approx(-math.log(0.7))
    assert modified_entropy(LOGITS, labels(0)).item() == pytest.approx(0.16217, abs=1e-5)
    assert modified_entropy(LOGITS, labels(1)).item() == pytest.approx(2.14087, abs=1e-5)
    assert scaled_confidence(LOGITS, labels(0)).item() == pytest.approx(math.log(7 / 3))


def test_a_certain_model_gives_finite_scores() -> None:
    certain = torch.tensor([[800.0, 0.0, 0.0]])
    assert modified_entropy(certain, labels(0)).item() == 0.0
    assert scaled_confidence(certain, labels(0)).item() == pytest.approx(800 - math.log(2))
    assert torch.isfinite(modified_entropy(certain, labels(1))).all()


def test_quotas_are_as_even_as_the_classes_allow() -> None:
    assert balanced_quotas([9, 9, 9], 6) == [2, 2, 2]
    assert balanced_quotas([1, 9, 9], 9) == [1, 4, 4]
    assert balanced_quotas([2, 3], 100) == [2, 3]
    assert sum(balanced_quotas([5, 5, 5], 7)) == 7


def test_members_and_others_have_the_same_classes_and_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [(torch.zeros(60, 3, 2, 2, dtype=torch.uint8), torch.arange(60) % 4) for _ in range(2)]
    assert available_pairs(sides[0][1], sides[1][1], 4) == [15] * 4
    own, rest = draw_pairs(sides[0][1], sides[1][1], 20, 4, torch.Generator().manual_seed(0))
    assert len(own.unique()) == len(rest.unique()) == 20
    group = draw_group("clean", sides[0], sides[1], 20, 4, generator)
    assert group is not None
    assert torch.equal(group.labels, torch.cat([sides[0][1][own], sides[1][1][rest]]))
    for half in (group.calibration, ~group.calibration):
        counts = [
            torch.bincount(group.labels[half & side], minlength=4).tolist() for side in (group.member, ~group.member)
        ]
        assert counts[0] == counts[1]
        assert min(counts[0]) >= 2


def test_threshold_and_true_positive_rate_of_known_scores() -> None:
    member = torch.tensor([True] * 3 + [False] * 3)
    scores = torch.tensor([5.0, 4.0, 1.0, 3.0, 2.0, 0.0])
    assert best_threshold(scores, member) == 4.0
    # One of three others may be above: the bar is the second largest of them.
    assert true_positive_rate(scores, member, 1 / 3) == pytest.approx(2 / 3)
    assert true_positive_rate(scores, member, 0.01) is None


def group_of(n: int, classes: int = 2) -> Group:
    """n members and n others, classes in turn; every second pair calibrates."""
    at = torch.arange(n)
    return Group(
        "clean",
        torch.zeros(2 * n, 3, 1, 1, dtype=torch.uint8),
        (at % classes).repeat(2),
        torch.arange(2 * n) < n,
        (at // classes % 2 == 0).repeat(2),
        torch.full((2 * n,), -1),
    )


def test_scores_that_know_nothing_are_judged_as_chance() -> None:
    group = group_of(2000)
    found = judged(torch.rand(4000, generator=torch.Generator().manual_seed(1)), group)
    # 1,000 against 1,000 are judged: 1.96 standard errors of the rank-sum statistic.
    assert abs(found["auc"] - 0.5) < 1.96 * math.sqrt(2001 / (12 * 1000 * 1000))
    assert abs(found["balanced_accuracy"] - 0.5) < 0.05
    assert found["tpr_at_1_percent"] < 0.03


def test_a_threshold_per_class_finds_what_one_threshold_cannot() -> None:
    """Members score 1 more than others of their class, and class 1 lies 10 higher."""
    group = group_of(400)
    noise = 0.2 * torch.rand(800, generator=torch.Generator().manual_seed(2))
    scores = group.member.double() + 10.0 * group.labels + noise
    assert judged(scores, group)["balanced_accuracy"] < 0.8
    by_class = judged(scores, group, by_class=True)
    # Each bar is the least of 100 members' scores, so of 100 others one or two lie below it.
    assert by_class["balanced_accuracy"] > 0.95
    assert by_class["auc"] == 1.0


def test_likelihood_ratio_asks_how_unusual_a_confidence_is() -> None:
    """Two images, one easy for everybody; the target is 2 more confident than usual on the hard one alone."""
    unseen = [torch.tensor([8.0, 0.0]), torch.tensor([10.0, 2.0]), torch.tensor([9.0, 1.0])]
    target = torch.tensor([[9.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    score = likelihood_ratio(target, labels(0, 0), unseen)
    # Spread of -1, 1, 0 around the mean: 1.
    assert score.tolist() == pytest.approx([0.0, 2.0])
    # A shadow model that was trained on the hard image is sure of it, and says nothing of how unusual that is.
    seen = [*unseen, torch.tensor([9.0, math.nan])]
    assert likelihood_ratio(target, labels(0, 0), seen)[1] > 2.0
    told = likelihood_ratio(target, labels(0, 0), [*unseen, torch.tensor([9.0, 30.0])])
    assert told[1] < 1.0
