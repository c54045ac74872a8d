"""The chaos benchmark notices what it is there to notice; small, it runs whole where there is time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos import KINDS, _Run, _spec, measure
from study.plan.jobs import make_plan
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.spec.load import make_spec
from tests.study.tiny import made_up_row

TRIALS = 6


def run_of(folder: Path, seed: int = 0, finishes: int = TRIALS) -> _Run:
    """A study as the benchmark finds it at its end, its rows made up; ``seed``: of the search."""
    run = _Run(folder, TRIALS, SimpleNamespace(address="none"), random.Random(0))  # type: ignore[arg-type]
    plan = make_plan(make_spec({**_spec(TRIALS), "seeds": [seed]}))
    run.out.mkdir()
    with Ledger(run.out / "trials.jsonl") as ledger:
        driver = Driver(plan, ledger, open_searches(plan, open_storage("journal", run.out)))
        jobs = [driver.next_job() for _ in range(TRIALS)]
        assert driver.next_job() is None, "the search has no setting beyond them"
        for job in jobs[:finishes]:
            assert job is not None
            driver.finish(job, {**made_up_row(job, plan), "seed": 0})
    return run


def change(run: _Run, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path = run.out / "trials.jsonl"
    rows = edit([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_search_tries_the_same_settings_and_finds_the_same_front(tmp_path: Path) -> None:
    first, second = run_of(tmp_path / "a"), run_of(tmp_path / "b", seed=5)
    ids = [[row["trial"] for row in Ledger.read(run.out / "trials.jsonl").rows()] for run in (first, second)]
    orders = [
        [row["param.iterations"] for row in Ledger.read(run.out / "trials.jsonl").rows()] for run in (first, second)
    ]
    assert ids[0] == ids[1]
    assert orders[0] != orders[1], "in another order"
    assert set(first.rates()) == set(second.rates())
    assert len(first.rates()) == TRIALS


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: [*rows, rows[0]], "line 7 repeats"),
        (lambda rows: rows[:-1], "5 rows of 5 trials; 6 asked"),
        (lambda rows: [*rows[:-1], {**rows[-1], "status": "failed", "error": "it died"}], "1 trials failed.*it died"),
    ],
)
def test_a_lost_a_failed_and_a_repeated_trial_are_noticed(
    tmp_path: Path, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], said: str
) -> None:
    run = run_of(tmp_path / "a")
    change(run, edit)
    with pytest.raises(RuntimeError, match=said):
        run.check()


def test_a_victim_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    (tmp_path / "a" / "store").mkdir()
    with pytest.raises(RuntimeError, match=r"victims \[\]; a clean one"):
        run.check()


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
