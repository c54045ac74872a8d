"""Which jobs of a running study are handed out, and in what order."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.plan.jobs import make_plan
from study.record.ledger import Ledger
from study.run.job_queue import JobQueue
from study.run.measured import Measured
from tests.study.tiny import made_up_row, tiny_spec
from trainables.job import Job

PLAN = make_plan(tiny_spec("attacks=[badnets, blended]", "search.per=all", "seeds=[0, 1]"))
(SEARCH,) = PLAN.searches


def jobs(trial: str) -> list[Job]:
    return [Job(SEARCH.label, trial, "search", cell, {}, False) for cell in SEARCH.cells]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "trials.jsonl")


def row_of(job: Job, **changes: object) -> dict[str, object]:
    return {**made_up_row(job, PLAN), "study": "tiny", "trial": job.trial, "search": job.label, **changes}


def test_the_first_that_is_wanted_leaves_and_one_that_is_put_back_is_next(ledger: Ledger) -> None:
    queue, (first, second, third, _) = JobQueue(ledger), jobs("a")
    for job in (first, second, third):
        queue.add(job)
    assert queue.take(lambda job: job is not first) is second
    queue.put_back(second)
    assert [queue.take(lambda _: True) for _ in range(4)] == [second, first, third, None]


def test_a_dropped_setting_has_no_job_left_and_the_others_keep_theirs(ledger: Ledger) -> None:
    queue, kept = JobQueue(ledger), jobs("b")
    for job in (*jobs("a"), *kept):
        queue.add(job)
    assert queue.count("a") == 4
    queue.drop("a")
    assert (queue.count("a"), len(queue)) == (0, 4)
    assert [queue.take(lambda _: True) for _ in kept] == kept


def test_a_job_with_a_row_does_not_get_in_and_a_kept_model_has_its_name(ledger: Ledger) -> None:
    measured, other, *_ = jobs("a")
    ledger.append(row_of(measured))
    queue = JobQueue(ledger, keep=lambda job: f"{job.trial}/{job.cell.seed}")
    queue.add(measured)
    queue.add(other)
    taken = queue.take(lambda _: True)
    assert taken is not None
    assert (taken.key, taken.keep, len(queue)) == (other.key, f"a/{other.cell.seed}", 0)


def test_a_victim_without_a_backdoor_counts_nowhere_from_its_first_row_on(ledger: Ledger) -> None:
    """What another setting is said to come to does not rest on such a victim, also where it abstained there."""
    measured = Measured(ledger)
    measured.look(PLAN, [SEARCH], {})
    for job in jobs("a"):
        measured.add(job, row_of(job, asr_search=float(job.cell == SEARCH.cells[0])), 0.0)
    rows = measured.on_cells(SEARCH, "a")
    before = measured.scores(rows)
    assert before is not None
    assert before[0] == pytest.approx(1 / 4)
    measured.add(jobs("b")[0], row_of(jobs("b")[0], status="backdoor_not_implanted"), 0.0)
    after = measured.scores(rows)
    assert after is not None
    assert after[0] == 0.0
