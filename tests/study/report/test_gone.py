"""Where several seeds were run, the report begins with the share of runs in which the backdoor is gone."""

from __future__ import annotations

import re
from typing import Any

from study.record.columns import to_frame
from study.report.gone import gone_html
from study.report.page import _pairs
from study.results.fronts import fronts
from study.results.outcomes import outcome_counts
from study.results.settings import aggregate
from tests.study.rows import make_row, point


def table(rows: list[dict[str, Any]]) -> str:
    frame = to_frame(rows)
    own = aggregate(frame)
    return gone_html(own, outcome_counts(frame), _pairs(own, fronts(frame)))


def cells(html: str) -> dict[str, str]:
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>(.*?)</tr>", html)]
    assert lines[0] == ["backdoor gone in", "badnets"]
    return {line[0]: line[1] for line in lines[1:]}


def baseline(label: str, asrs: tuple[float, ...], **changes: Any) -> list[dict[str, Any]]:
    return [
        make_row(
            f"badnets/{label}/baseline", asr=asr, seed=seed, **{"defense": "ft", "defense_label": label, **changes}
        )
        for seed, asr in enumerate(asrs)
    ]


def test_what_all_attackers_tell_of_others_is_said_and_hangs_on_no_defender() -> None:
    three = baseline("ft", (0.0, 0.0, 0.0))
    assert "Gone in all 3 of 3 attackers means in 44% or more" in table(three)
    assert "Gone in all 3 of 3" in table([*three, *baseline("ft", (0.0, 0.0, 0.0), defense_seed=1)])
    one = [row for own in (0, 1) for row in baseline("ft", (0.0,), defense_seed=own)]
    assert "2 of 2" in table(one)
    assert "Gone in all" not in table(one), "one attacker tells of no other"


def test_runs_are_counted_per_label_published_and_tuned() -> None:
    rows = [point(0, asr, 0.97, seed=seed, published=True) for seed, asr in enumerate((0.0, 0.98, 1.0))]
    rows += [point(1, asr, 0.98, seed=seed) for seed, asr in enumerate((0.1, 0.05, 0.11))]
    rows += baseline("ft_peak", (0.0, 0.01, 0.0)) + baseline("ft", (0.9, 0.9, 0.9))
    rows += baseline("none", (1.0, 1.0, 1.0), defense="none")
    assert cells(table(rows)) == {
        "super_ft, published": "1 of 3",
        "super_ft, tuned": "2 of 3",
        "ft": "0 of 3",
        "ft_peak": "3 of 3",
    }


def test_a_collapsed_or_failed_run_has_removed_nothing_and_a_missing_backdoor_is_no_run() -> None:
    rows = baseline("ruined", (0.0, 0.0), collapsed=True) + baseline("ft", (0.0, 0.5))
    rows += [make_row("badnets/ft/baseline", asr=0.0, seed=2, status="backdoor_not_implanted")]
    assert cells(table(rows)) == {"ruined": "0 of 2", "ft": "1 of 2 (1 more had none)"}


def test_one_run_of_each_needs_no_table_of_shares() -> None:
    assert table([*baseline("ft", (0.0,)), point(0, 0.0, 0.9, published=True)]) == ""
