"""An interval holds the truth about attackers as often as it says, and never counts a test image twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from study.record.columns import to_frame
from study.results.intervals import Counted, difference, estimate, interval, jackknife, reach
from study.results.settings import aggregate, ends_of
from study.spec.over_attacks import parse_rule
from tests.study.rows import make_row, point
from trainables.evaluation.metrics import wilson


def _counted(asr: np.ndarray, n: int, defenders: int = 1) -> Counted:
    """Points times cells, of so many defenders for each attacker."""
    cells = asr.shape[1]
    counts = np.full(cells, float(n))
    return Counted(asr, asr, counts, counts, np.repeat(np.arange(cells // defenders), defenders))


def test_without_images_it_is_the_t_interval_of_the_attackers_means() -> None:
    means = np.array([0.1, 0.3, 0.2, 0.5])
    one = estimate(_counted(means[None], 0), lambda asr, _: asr[:, 0])
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert (one.value, one.low, one.high, one.attackers) == pytest.approx((means.mean(), low, high, 4))
    found = jackknife(0.275, [float(np.delete(means, i).mean()) for i in range(4)])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_of_one_attacker_it_knows_of_test_images_alone_and_says_so() -> None:
    one = estimate(_counted(np.array([[0.1]]), 200), lambda asr, _: asr[:, 0], draws=20_000)
    assert one.attackers == 1
    assert (one.low, one.high) == pytest.approx(wilson(20, 200), abs=0.01)
    assert math.isnan(reach([0.1]))
    assert interval(0.1, 200) == interval(0.1, 200, math.nan) == wilson(20, 200)
    assert interval(0.1, None) is None


def test_more_runs_on_the_same_images_make_no_image_count_twice() -> None:
    """Ten attackers without any spread between them are as certain as one."""
    alone = estimate(_counted(np.full((1, 1), 0.1), 200), lambda asr, _: asr[:, 0])
    ten = estimate(_counted(np.full((1, 10), 0.1), 200), lambda asr, _: asr[:, 0])
    assert ten.high - ten.low == pytest.approx(alone.high - alone.low, rel=0.05)


@pytest.mark.parametrize("attackers", [2, 3, 5])
def test_it_holds_the_true_mean_over_attackers_as_often_as_it_says(attackers: int) -> None:
    """Of attackers whose true ASR spreads by 0.15 about 0.4; two defenders each, 226 images that all runs share.

    Binomial(200, 0.95) is below 180 in 2 of 1,000 cases. Intervals from pooled counts hold the mean in a third of them.
    """
    rng, held = np.random.default_rng(attackers), 0
    for _ in range(200):
        true = np.clip(np.repeat(rng.normal(0.4, 0.15, attackers), 2) + rng.normal(0, 0.03, 2 * attackers), 0, 1)
        rates = rng.binomial(226, true) / 226
        one = estimate(_counted(rates[None], 226, defenders=2), lambda asr, _: asr[:, 0], draws=300)
        held += one.low <= 0.4 <= one.high
    assert held >= 180


def test_a_difference_is_of_the_same_attackers() -> None:
    """Attackers differ by far more than the two repairs, each time by the same."""
    base = np.array([0.2, 0.5, 0.8])
    found = difference(_counted(np.stack([base + 0.1, base]), 4000), "asr")
    assert found.value == pytest.approx(0.1)
    assert 0.05 < found.low < 0.1 < found.high < 0.15


def test_a_setting_carries_the_reach_of_its_attackers() -> None:
    rates = {(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.4, (1, 1): 0.5, (2, 0): 0.0, (2, 1): 0.0}
    rows = [point(0, asr, 0.9, seed=seed, defense_seed=own) for (seed, own), asr in rates.items()]
    (one,) = aggregate(to_frame(rows)).to_dict("records")
    means = np.array([0.15, 0.45, 0.0])
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert one["asr_report_reach"] == pytest.approx((high - low) / 2)
    assert one["clean_accuracy_report_reach"] == pytest.approx(0.0, abs=1e-12)
    assert one["n_triggered_report"] == 243, "of one run, all runs share their images"
    ends = ends_of({str(key): value for key, value in one.items()}, "asr")
    assert ends == interval(one["asr_report"], 243, one["asr_report_reach"])


def test_of_a_worst_case_an_attacker_is_left_out_of_all_attacks() -> None:
    rates = {("a", 0): 0.1, ("a", 1): 0.3, ("b", 0): 0.2, ("b", 1): 0.0, ("a", 2): 0.1, ("b", 2): 0.4}
    rows = [
        make_row("all/super_ft/0000", asr=asr, clean_accuracy=0.9, seed=seed, attack=attack)
        for (attack, seed), asr in rates.items()
    ]
    (one,) = aggregate(to_frame(rows), across_attacks=True, rule=parse_rule("worst")).to_dict("records")
    assert one["asr_report"] == pytest.approx(0.2), "of a 0.167, of b 0.2"
    without = [max((0.3 + 0.1) / 2, (0.0 + 0.4) / 2), max(0.1, (0.2 + 0.4) / 2), max(0.2, 0.1)]
    assert one["asr_report_reach"] == pytest.approx(reach(without))


def test_one_attacker_has_no_reach() -> None:
    (one,) = aggregate(to_frame([point(0, 0.1, 0.9, defense_seed=own) for own in (0, 1)])).to_dict("records")
    assert math.isnan(one["asr_report_reach"])
