"""A reader is warned of what chance does not explain, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from trainables.evaluation.metrics import sign_test
from trainables.foreign.findings import measured, warnings_of


def _facts(lost: int, won: int, right: int, wrong: int = 0) -> dict[str, Any]:
    """Of a repair that moved: so many held-out images lost, won, and right or wrong both times."""
    labels = torch.zeros(lost + won + right + wrong, dtype=torch.int64)
    before, after = labels.clone(), labels.clone()
    after[:lost], before[lost : lost + won] = 1, 1
    if wrong:
        after[-wrong:], before[-wrong:] = 1, 1
    return {"status": "ok", "moved": True, **measured(labels, before, after)}


@pytest.mark.parametrize(
    ("lost", "won", "right", "wrong"), [(8, 0, 90, 2), (14, 2, 466, 18), (24, 4, 926, 46)]
)  # from 98 % to 90 of 100 images, from 96 to 93.6 of 500, from 95 to 93 of 1,000
def test_a_fall_that_the_images_themselves_tell_is_said(lost: int, won: int, right: int, wrong: int) -> None:
    """Intervals before and after overlap in each of these: they leave out that the images are the same."""
    facts = _facts(lost, won, right, wrong)
    assert facts["clean_accuracy_after"]["interval"][1] > facts["clean_accuracy_before"]["interval"][0]
    (line,) = warnings_of(facts)
    assert f"{lost} held-out images were lost and {won} won" in line


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 0), (2, 9), (12, 6)])
def test_what_chance_explains_is_no_warning(lost: int, won: int) -> None:
    assert warnings_of(_facts(lost, won, 200)) == []


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (8, 0), (24, 4)])
def test_the_sign_test_is_the_exact_binomial_one(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert sign_test(first, second) == pytest.approx(expected)
