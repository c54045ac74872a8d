"""A study under which everything is killed comes out as one that nothing happened to: the benchmark, small."""

from __future__ import annotations

import pytest

from benchmarks.chaos import KINDS, measure


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_comes_out_the_same_whatever_is_killed() -> None:
    """`measure` checks all that is claimed; each kind of fault once, while two nodes run sixteen trials."""
    row = measure(trials=16, nodes=2, faults=len(KINDS), seed=1)
    assert row["by_kind"] == dict.fromkeys(KINDS, 1)
    assert row["driver_starts"] >= 2
    assert set(row["seconds_to_the_next_row"]) == set(KINDS)
    assert row["front"] >= 1
