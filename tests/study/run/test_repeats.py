"""Searches that are made several times: independent, planned, continued, and beside the study's own results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.plan.jobs import make_plan
from study.record.columns import to_frame
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.optuna_storage import open_storage
from study.report.terminal import front_summary
from study.report.write import write_report
from study.results.fronts import fronts
from study.results.left import plan_in, trials_left
from study.results.pareto import hypervolume
from study.results.repeats import mean_of, repeated_searches
from study.results.rows import of_repeat
from study.results.settings import aggregate_all
from study.watch.words import overview
from tests.study.rows import made_up_study
from tests.study.tiny import AS_PUBLISHED, make_driver, run, tiny_spec

THRICE = (*AS_PUBLISHED, "search.repeats=3", "search.trials=6")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("per", ["attack", "all"])
def test_each_search_is_made_that_often_with_other_draws(per: str, tmp_path: Path) -> None:
    spec = tiny_spec(*THRICE, "attacks=[badnets, blended]", f"search.per={per}")
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    assert driver.total == driver.plan.total_jobs == 2 + 3 * 6 * 2
    assert run(driver) == driver.plan.total_jobs
    rows = [row for row in driver.ledger.rows() if row["search"]]
    drawn: dict[str, list[float]] = {}
    for row in rows:
        drawn.setdefault(row["search"], []).append(row["param.lr_max1"])
        assert (row["role"], row.get("repeat")) == (
            ("repeat", int(row["search"][-1])) if "repeat" in row["search"] else ("search", None)
        )
        assert row["published"] == (row["param.lr_max1"] == 0.1)
    assert len(drawn) == len(driver.searches) == (3 if per == "all" else 6)
    assert len({value for own in drawn.values() for value in own}) == 1 + 5 * len(drawn), "they share the published one"


def test_the_study_itself_is_as_without_repeats(tmp_path: Path) -> None:
    once = make_driver(tiny_spec(*AS_PUBLISHED, "search.trials=6"), tmp_path / "once.jsonl")
    thrice = make_driver(tiny_spec(*THRICE), tmp_path / "thrice.jsonl")
    run(once, slots=1)
    run(thrice, slots=1)
    first, frame = once.ledger.to_frame(), thrice.ledger.to_frame()
    for table in (aggregate_all, fronts):
        order = ["trial"]
        one, other = (table(f).sort_values(order).reset_index(drop=True) for f in (first, frame))
        pd.testing.assert_frame_equal(
            one.drop(columns="finished_row", errors="ignore"),
            other[one.columns].drop(columns="finished_row", errors="ignore"),
        )
    assert repeated_searches(first).empty


@pytest.mark.parametrize("keep_storage", [True, False], ids=["journal", "journal lost"])
def test_a_driver_stopped_at_any_point_is_continued_to_the_same_study(keep_storage: bool, tmp_path: Path) -> None:
    spec = tiny_spec(*AS_PUBLISHED, "search.repeats=2", "search.trials=3")
    total = make_plan(spec).total_jobs
    for stop in range(total + 1):
        folder = tmp_path / str(stop)
        folder.mkdir()
        first = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder))
        assert run(first, finishes=stop) == stop
        first.ledger.close()
        kept = first.ledger.rows()
        again = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder) if keep_storage else None)
        assert trials_left(plan_in(folder, spec, kept), kept).total() == total - stop
        assert run(again) == total - stop
        assert again.ledger.rows()[:stop] == kept
        states = [t.state for search in again.searches for t in search.study.get_trials(deepcopy=False)]
        assert states.count(TrialState.COMPLETE) == 6
        assert TrialState.RUNNING not in states
        again.ledger.close()


def test_the_interval_of_known_values() -> None:
    one = mean_of([0.5, 0.6, 0.7])
    reach = 4.302653 * 0.1 / np.sqrt(3)  # t at 0.975 with 2 degrees of freedom
    assert (one.value, one.low, one.high) == pytest.approx((0.6, 0.6 - reach, 0.6 + reach))
    alone = mean_of([0.9])
    assert (alone.low, alone.high) == (0.0, 1.0), "one search says nothing of its luck"
    assert mean_of([0.9, 1.0]).high == 1.0
    with pytest.raises(ValueError, match="no searches"):
        mean_of([])


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_of(rng.normal(0.8, 0.02, size=4)) for _ in range(1000)]
    assert 0.93 <= np.mean([one.low <= 0.8 <= one.high for one in found]) <= 0.97


def _repeated_study(folder: Path, repeats: int = 3) -> pd.DataFrame:
    """Made-up rows of a search made several times, each of them drawn anew."""
    rows = made_up_study(attacks=("badnets",), trials=8)
    for number in range(1, repeats):
        for row in made_up_study(attacks=("badnets",), trials=8, seed=number):
            if row["role"] == "search":
                label = f"{row['search']}/repeat-{number}"
                trial = f"{label}/{row['trial'][-4:]}"
                rows.append({**row, "role": "repeat", "repeat": number, "search": label, "trial": trial})
    spec = tiny_spec(f"search.repeats={repeats}", "search.trials=8")
    (folder / SPEC_FILE).write_text(spec.to_yaml())
    driver = make_driver(spec, folder / LEDGER_FILE, InMemoryStorage())
    for row in rows:
        driver.ledger.append(row)
    driver.ledger.close()
    return to_frame(rows)


def test_what_the_searches_come_to_stands_in_report_and_terminal(tmp_path: Path) -> None:
    frame = _repeated_study(tmp_path)
    (one,) = [row for _, row in repeated_searches(frame).iterrows()]
    each = []
    for number in range(3):
        members = fronts(of_repeat(frame, number))
        each.append(hypervolume(members[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float)))
    assert len(set(each)) == 3
    assert (one["searches"], one["settings_least"], one["settings_most"]) == (3, one["settings_least"], 8)
    assert one["hypervolume"] == pytest.approx(np.mean(each))
    assert (one["hypervolume_first"], one["hypervolume_least"], one["hypervolume_most"]) == pytest.approx(
        (each[0], min(each), max(each))
    )
    assert one["hypervolume_low"] < one["hypervolume"] < one["hypervolume_high"]
    page = write_report(tmp_path).read_text()
    part = page.partition("<summary>Would another search find as much?</summary>")[2].partition("</details>")[0]
    assert f"{one['hypervolume']:.3f}" in part
    said = " ".join(front_summary(tmp_path).split())
    assert f"badnets/super_ft: searched 3 times, hypervolume {one['hypervolume']:.4f}" in said
    shown = overview(tmp_path, called="here")
    assert all(f"badnets/super_ft{end} " in shown for end in ("", "/repeat-1", "/repeat-2"))
    lines = [line for line in shown.splitlines() if line.startswith("badnets/super_ft/repeat")]
    assert [f"{value:.4f}" in line for value, line in zip(each[1:], lines, strict=True)] == [True, True]
