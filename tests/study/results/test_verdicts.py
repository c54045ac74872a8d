"""A tuned setting is held against the published setting of the same defense, on the report half of the same models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from study.record.columns import to_frame
from study.results import verdicts as v
from study.results.fronts import fronts
from study.results.outcomes import NO_BACKDOOR, REMOVED, outcome_counts, outcome_of
from study.results.settings import aggregate
from tests.study.rows import failed_row, make_row, point

HALVES = ("search", "report")


def _verdict(rows: Sequence[dict[str, Any]]) -> v.Verdict:
    frame = to_frame(rows)
    (found,) = v.verdicts(aggregate(frame), fronts(frame))
    return found


@pytest.mark.parametrize(
    ("published", "tuned", "verdict"),
    [
        ((0.4, 0.96), (0.1, 0.98), v.BETTER),
        ((0.1, 0.96), (0.1, 0.98), v.NO_WORSE),
        ((0.4, 0.99), (0.1, 0.98), v.LESS_ASR),
        ((0.0, 0.96), (0.1, 0.98), v.MORE_ACCURACY),
        ((0.1, 0.98), (0.1, 0.98), v.EQUAL),
        ((0.0, 0.99), (0.1, 0.98), v.WORSE),
    ],
)
def test_the_report_half_decides(published: tuple[float, float], tuned: tuple[float, float], verdict: str) -> None:
    halves = {"asr_report": published[0], "clean_accuracy_report": published[1]}
    own = {"asr_report": tuned[0], "clean_accuracy_report": tuned[1]}
    # On the search half setting 1 is the better one every time.
    found = _verdict([point(0, 0.5, 0.98, published=True, **halves), point(1, 0.1, 0.985, **own)])
    assert found.verdict == verdict
    assert found.pick is not None
    assert found.pick["trial"] == "badnets/super_ft/0001"


def test_a_pick_that_is_better_in_both_on_the_search_half_is_the_one_that_is_judged_and_named() -> None:
    # At 1 point lost the search keeps a setting that repairs nothing; its pick at 5 points beats the published one.
    rows = [point(0, 0.2, 0.93, published=True), point(1, 0.9, 0.98), point(2, 0.1, 0.94)]
    found = _verdict(rows)
    assert (found.verdict, found.label) == (v.BETTER, "drop_5")
    assert found.tuned is not None
    assert found.tuned["trial"] == "badnets/super_ft/0001"


def test_which_pick_is_judged_does_not_hang_on_its_luck_on_the_report_half() -> None:
    # All three picks beat the published setting on the search half; the first of them is the worst on the other.
    rows = [point(0, 0.5, 0.93, published=True), point(1, 0.4, 0.98, asr_report=0.6, clean_accuracy_report=0.92)]
    rows += [point(2, 0.3, 0.97), point(3, 0.2, 0.94)]
    found = _verdict(rows)
    assert (found.verdict, found.label) == (v.WORSE, v.TUNED)


def test_settings_that_are_equal_in_truth_rarely_look_better() -> None:
    """Of two equal settings one is better in both rates on fresh images in a quarter of all cases, by symmetry."""
    draws, better = np.random.default_rng(0), 0
    for _ in range(60):
        rates = {"asr": 0.3, "clean_accuracy": 0.95}
        halves = [
            {f"{name}_{half}": draws.binomial(250, rate) / 250 for name, rate in rates.items() for half in HALVES}
            for _ in range(12)
        ]
        rows = [point(i, 0.3, 0.95, published=i == 0, **one) for i, one in enumerate(halves)]
        better += _verdict(rows).verdict == v.BETTER
    # Binomial(60, 1/4) exceeds 23 in 1 % of cases; a pick that was chosen on the report half exceeds it.
    assert better <= 23


def test_the_published_setting_itself_is_no_gain() -> None:
    assert _verdict([point(0, 0.1, 0.98, published=True), point(1, 0.2, 0.97)]).verdict == v.SAME


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"collapsed": True, "asr": 0.9, "clean_accuracy": 0.1}, v.PUBLISHED_FAILED),
        ({"status": "diverged", "asr": 1.0, "clean_accuracy": 0.0}, v.PUBLISHED_FAILED),
        ({"published": False, "asr": 0.9, "clean_accuracy": 0.1}, v.NOT_PUBLISHED),
    ],
)
def test_nothing_is_said_to_beat_a_ruined_or_missing_published_setting(changes: dict[str, Any], verdict: str) -> None:
    first = make_row("badnets/super_ft/0000", **{"published": True, **changes})
    assert _verdict([first, point(1, 0.1, 0.98)]).verdict == verdict


def test_a_published_setting_that_lacks_a_run_is_compared_with_nothing() -> None:
    rows = [point(0, 0.9, 0.9, published=True, seed=0), failed_row("badnets/super_ft/0000", seed=1, published=True)]
    rows += [point(1, 0.1, 0.98, seed=seed) for seed in (0, 1)]
    assert _verdict(rows).verdict == v.PUBLISHED_FAILED


def test_a_search_without_results_or_without_a_pick() -> None:
    assert _verdict([failed_row("badnets/super_ft/0000")]).verdict == v.NO_RESULT
    assert _verdict([point(0, 0.1, 0.5, published=True)]).verdict == v.NO_PICK


def test_a_gain_is_clear_only_beyond_the_intervals_of_all_numbers_that_differ() -> None:
    def judged(published: tuple[float, float], tuned: tuple[float, float], seeds: int = 3) -> tuple[str, bool]:
        rows = [
            point(number, *rates, published=not number, seed=seed)
            for seed in range(seeds)
            for number, rates in enumerate((published, tuned))
        ]
        found = _verdict(rows)
        return found.verdict, v.is_clear(found, to_frame(rows))

    assert judged((0.9, 0.80), (0.1, 0.98)) == (v.BETTER, True)
    assert judged((0.9, 0.979), (0.1, 0.98)) == (v.BETTER, False)
    assert judged((0.1, 0.80), (0.1, 0.98)) == (v.NO_WORSE, True)
    assert judged((0.9, 0.80), (0.1, 0.98), seeds=1) == (v.BETTER, False), "of one attacker nothing is clear"


def test_a_gain_that_hangs_on_one_attacker_is_not_clear() -> None:
    """Two attackers are repaired by both settings, the third by the tuned one alone: five points of images apart."""
    published, tuned = (0.05, 0.05, 0.9), (0.0, 0.0, 0.0)
    rows = [point(0, asr, 0.90, published=True, seed=seed) for seed, asr in enumerate(published)]
    rows += [point(1, asr, 0.98, seed=seed) for seed, asr in enumerate(tuned)]
    assert not v.is_clear(_verdict(rows), to_frame(rows))


def test_the_more_gains_are_looked_at_the_larger_each_must_be() -> None:
    rows = [point(0, 0.5 + 0.02 * seed, 0.85, published=True, seed=seed) for seed in range(3)]
    rows += [point(1, 0.3, 0.98, seed=seed) for seed in range(3)]
    found, frame = _verdict(rows), to_frame(rows)
    assert v.is_clear(found, frame)
    assert not v.is_clear(found, frame, comparisons=1000)


def test_outcomes_tell_what_the_runs_of_a_setting_came_to() -> None:
    rows = [
        make_row("badnets/ft/baseline", seed=0, asr=0.05),
        make_row("badnets/ft/baseline", seed=1, asr=0.5),
        make_row("badnets/ft/baseline", seed=2, asr=0.0, collapsed=True),
        make_row("badnets/ft/baseline", seed=3, status="diverged", collapsed=True),
        failed_row("badnets/ft/baseline", seed=4),
        make_row("badnets/ft/baseline", seed=5, status="backdoor_not_implanted"),
    ]
    frame = to_frame(rows)
    assert outcome_of(frame).tolist() == ["ok", "ok", "collapsed", "diverged", "failed", NO_BACKDOOR]
    counts = outcome_counts(frame).iloc[0]
    assert counts.to_dict() == {
        "ok": 2,
        "abstained": 0,
        "collapsed": 1,
        "diverged": 1,
        "failed": 1,
        NO_BACKDOOR: 1,
        REMOVED: 1,
    }
