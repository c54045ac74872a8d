"""The table of repairs: what counts as gone, what is left out, and differences within the same run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from study.record.columns import to_frame
from study.report.repairs import repairs_markdown
from study.results.repairs import Repair, less_others, repairs
from tests.study.rows import make_row

PLACE = ("", "digits", "preact_resnet18", "badnets")


def _run(label: str, seed: int, asr: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    return make_row(
        f"badnets/{label}/baseline",
        defense_label=label,
        seed=seed,
        victim=f"v{seed}",
        asr=asr,
        clean_accuracy=accuracy,
        **changes,
    )


def test_a_backdoor_is_gone_at_an_asr_of_a_tenth_in_a_model_that_works() -> None:
    rows = [_run("ft", 0, 0.1, 0.9), _run("ft", 1, 0.101, 0.8), _run("ft", 2, 0.0, 0.1, collapsed=True)]
    (found,) = repairs(to_frame(rows))[PLACE]
    assert found == Repair("ft", 1, 3, 1, (0.1, 0.101), (0.8, 0.9), pytest.approx(0.85))


def test_a_victim_without_a_backdoor_and_a_searched_setting_tell_nothing() -> None:
    searched = make_row("badnets/ft/0001", asr=0.0, seed=0, victim="v0")
    published = make_row("badnets/ft/0000", asr=0.2, seed=0, victim="v0", published=True)
    without = _run("ft", 1, 0.0, 0.9, status="backdoor_not_implanted")
    (found,) = repairs(to_frame([searched, published, without]))[PLACE]
    assert (found.runs, found.asr) == (1, (0.2, 0.2))


def test_a_difference_is_that_of_runs_on_the_same_victim_by_the_same_defender() -> None:
    # Victims differ by more than repairs do, and `ft` was not run on the last: the mean of all would say -0.08.
    rows = [_run("super_ft", seed, 0.0, accuracy) for seed, accuracy in enumerate((0.92, 0.72, 0.52))]
    rows += [_run("ft", 0, 0.1, 0.9), _run("ft", 1, 0.3, 0.7)]
    less = less_others(to_frame(rows), "super_ft")[PLACE]["ft"]
    asr, accuracy = less.asr, less.clean_accuracy
    assert (asr.value, accuracy.value) == (pytest.approx(-0.2), pytest.approx(0.02))
    assert (asr.attackers, less.pairs, less.of) == (2, 2, 2)
    assert asr.low < -0.2 < asr.high
    assert accuracy.low <= 0.02 <= accuracy.high


def test_a_broken_run_leaves_its_pair_out_of_a_difference() -> None:
    rows = [_run("super_ft", seed, 0.0, 0.9) for seed in (0, 1)]
    rows += [_run("ft", 0, 0.1, 0.95), _run("ft", 1, 0.0, 0.1, collapsed=True)]
    less = less_others(to_frame(rows), "super_ft")[PLACE]["ft"]
    assert less.clean_accuracy.value == pytest.approx(-0.05)
    assert (less.pairs, less.of, less.asr.attackers) == (1, 2, 1)
    text = repairs_markdown(to_frame(rows), less="super_ft")
    assert "| `ft` | -5.0 (1 of 2 pairs) | -10.0 (1 of 2 pairs) |" in text, "and of one attacker no interval"


def test_a_repair_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="no repair of this study is called nad; known: ft"):
        less_others(to_frame([_run("ft", 0, 0.1, 0.9)]), "nad")


def test_the_table_in_words() -> None:
    rows = [_run("none", 0, 1.0, 0.95), _run("ft", 0, 0.05, 0.9), _run("ft", 1, 0.0, 0.1, collapsed=True)]
    text = repairs_markdown(to_frame(rows), order=("none", "ft"), less="ft")
    assert "digits preact_resnet18:" in text
    assert "| `none` |  | 1.000 | 0.950 |" in text
    assert "| `ft` | 1 of 2 (1 broken) | 0.050 to 0.050 | 0.900 (0.900 to 0.900) |" in text
    assert "less that of" not in text  # beside `none` there is nothing to compare with


def test_a_study_without_a_finished_repair_says_so() -> None:
    assert "no repair" in repairs_markdown(to_frame([make_row("badnets/ft/0001")]))


def test_the_interval_of_a_difference_holds_what_is_true() -> None:
    """Two repairs of one true accuracy, on the same 500 images, which they often get wrong together: 0 lies within."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        # Nine images of ten are easy or hard for both; of the rest each repair has luck of its own.
        shared = rng.random(500) < 0.93
        right = [np.where(rng.random(500) < 0.9, shared, rng.random(500) < 0.93).mean() for _ in range(2)]
        rows = [_run(*one, n_clean=500) for one in (("one", 0, 0.0, right[0]), ("other", 0, 0.0, right[1]))]
        accuracy = less_others(to_frame(rows), "one")[PLACE]["other"].clean_accuracy
        found.append(accuracy.low <= 0.0 <= accuracy.high)
    assert np.mean(found) >= 0.95


def test_a_repair_that_is_a_baseline_and_searched_counts_once() -> None:
    rows = [row for seed in (0, 1) for row in (_run("super_ft", seed, 0.02, 0.9), _run("ft", seed, 0.3, 0.9))]
    for seed in (0, 1):
        point = _run("super_ft", seed, 0.02, 0.9, published=True)
        rows.insert(0, point | {"trial": "badnets/super_ft/0000", "role": "search"})
    found = {one.label: one for one in repairs(to_frame(rows))[PLACE]}
    assert (found["super_ft"].gone, found["super_ft"].runs) == (2, 2)
    less = less_others(to_frame(rows), "super_ft")[PLACE]["ft"]
    assert less.asr.value == pytest.approx(-0.28)
