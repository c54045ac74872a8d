"""Jobs start where there is room for their share; one that lacks memory gets more once, and all ends are recorded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from study.plan.slots import Node, Room, share_of
from study.record.stopped import Trouble
from study.run.dispatcher import MAX_RETURNS, MOST_OVERFLOWS, RETRIED, Dispatcher
from study.run.driver import Driver
from study.run.progress import Progress
from tests.study.tiny import made_up_row, make_driver, tiny_spec
from trainables.job import Cut, Job, NoGpu, OutOfMemory, Report, Row, StoreLost

SUPER_FT, NONE = "badnets/super_ft", "badnets/none/baseline"  # labels of the tiny study


class Desk:
    """A dispatcher over a tiny study, with the trials that run."""

    def __init__(self, driver: Driver, nodes: list[Node], shares: dict[str, float]) -> None:
        self.said, self.trouble = io.StringIO(), Trouble("the test")
        self.driver, self.room = driver, Room(nodes, 1)
        self.dispatcher = Dispatcher(
            driver, Progress(driver, self.said, clock=lambda: 0.0), self.room, shares, self.trouble
        )
        self.running: dict[str, tuple[Job, float]] = {}
        self.started = 0

    def fill(self) -> list[tuple[Job, float]]:
        """Start what may start now."""
        new = []
        while (found := self.dispatcher.start(str(self.started))) is not None:
            self.running[str(self.started)] = found
            new.append(found)
            self.started += 1
        return new

    def end(self, trial: str, report: Report | None = None) -> None:
        job, gpus = self.running.pop(trial)
        row = made_up_row(job, self.driver.plan, gpus=gpus, flags=[])
        self.dispatcher.report(trial, report or Row(json.dumps(row)))

    def end_all(self) -> None:
        while self.fill() or self.running:
            self.end(next(iter(self.running)))


def desk(tmp_path: Path, nodes: list[Node], shares: dict[str, float], *assignments: str) -> Desk:
    return Desk(make_driver(tiny_spec(*assignments), tmp_path / "trials.jsonl"), nodes, shares)


def rows(place: Desk) -> dict[str, dict[str, Any]]:
    return {row["trial"]: row for row in place.driver.ledger.rows()}


def test_as_many_jobs_run_as_there_are_slots_and_the_study_ends(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 3), Node("b", 1)], {NONE: 0.0, SUPER_FT: 0.0}, "search.trials=9")
    assert len(place.fill()) == 4
    assert not place.dispatcher.idle
    place.end("2")
    assert len(place.fill()) == 1
    place.end_all()
    assert place.dispatcher.idle
    assert place.driver.finished
    assert len(rows(place)) == 10


def test_every_job_gets_the_share_of_its_cell(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 2)], {NONE: 0.5, SUPER_FT: 0.25}, "search.trials=20")
    started = place.fill()
    assert [(job.label, gpus) for job, gpus in started] == [(NONE, 0.5)] + [(SUPER_FT, 0.25)] * 6
    place.end_all()
    assert {(row["defense"], row["gpus"]) for row in rows(place).values()} == {("none", 0.5), ("super_ft", 0.25)}


def test_an_actor_that_is_free_gets_a_trial_of_its_size_as_long_as_there_is_one(tmp_path: Path) -> None:
    """Actors of another size would have to be started, and the searches of both sizes take turns by themselves."""
    place = desk(
        tmp_path,
        [Node("a", 64, 1)],
        {"badnets/super_ft": 0.5, "badnets/ft": 0.25},
        "defenses=[super_ft, ft]",
        "baselines=[]",
        "search.trials=6",
        "search.ranges={}",
    )
    assert sorted(gpus for _, gpus in place.fill()) == [0.25, 0.25, 0.5]
    sizes = []
    while place.running:
        trial, (_, before) = next(iter(place.running.items()))
        place.end(trial)
        sizes += [(before, after) for _, after in place.fill()]
    changes = [pair for pair in sizes if pair[0] != pair[1]]
    assert len(sizes) == 9
    assert len(changes) <= 2, "only when one of the sizes has no more trials"
    assert place.driver.finished


def test_a_trial_that_lacks_memory_is_run_once_more_on_the_next_larger_share(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.25, SUPER_FT: 0.25}, "search.trials=3")
    started = place.fill()
    assert [gpus for _, gpus in started] == [0.25] * 4
    trial = next(trial for trial, (job, _) in place.running.items() if job.trial == "badnets/super_ft/0001")
    place.end(trial, OutOfMemory("CUDA out of memory. Tried to allocate 2 GiB"))
    assert place.fill() == [], "a third does not fit beside three quarters"
    place.end(next(iter(place.running)))
    ((job, gpus),) = place.fill()
    assert (job.trial, gpus) == ("badnets/super_ft/0001", share_of(3))
    place.end_all()
    found = rows(place)
    assert found["badnets/super_ft/0001"]["flags"] == [RETRIED]
    assert found["badnets/super_ft/0001"]["gpus"] == share_of(3)
    assert all(row["flags"] == [] for trial, row in found.items() if trial != "badnets/super_ft/0001")
    assert "badnets/super_ft/0001: out of memory on 1/4 of a GPU; once more on 1/3" in place.said.getvalue()
    assert len(found) == 4


def test_a_second_lack_of_memory_is_a_failed_row_with_its_cause(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.5, SUPER_FT: 0.5}, "search.trials=1", "baselines=[]")
    shares = []
    while started := place.fill():
        ((_, gpus),) = started
        shares.append(gpus)
        place.end(str(place.started - 1), OutOfMemory("CUDA out of memory.\nTried to allocate 2 GiB"))
    assert shares == [0.5, 1.0]
    (row,) = rows(place).values()
    assert row["status"] == "failed"
    assert row["error"] == "out of memory on 1 of a GPU, after 1/2: CUDA out of memory. Tried to allocate 2 GiB"
    assert (row["gpus"], row["flags"]) == (1.0, [RETRIED])
    assert place.dispatcher.idle


def test_a_trial_that_had_a_whole_card_is_not_tried_again(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 1.0, SUPER_FT: 1.0}, "search.trials=1", "baselines=[]")
    place.fill()
    place.end("0", OutOfMemory("CUDA out of memory"))
    (row,) = rows(place).values()
    assert (row["status"], row["gpus"], row["flags"]) == ("failed", 1.0, [])
    assert place.fill() == []


def test_a_defense_whose_trials_lack_memory_again_and_again_gets_more_for_all_of_them(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 4)], {NONE: 0.25, SUPER_FT: 0.25}, "search.trials=40", "baselines=[]")
    place.fill()
    for trial in list(place.running)[:MOST_OVERFLOWS]:
        place.end(trial, OutOfMemory("CUDA out of memory"))
    assert "2 trials of super_ft were out of memory: all of its trials get more now" in place.said.getvalue()
    kept = dict(place.running)
    place.end_all()
    found = rows(place)
    assert len(found) == 40
    assert sorted(trial for trial, row in found.items() if row["gpus"] == 0.25) == sorted(
        job.trial for job, _ in kept.values()
    ), "those that ran meanwhile kept what they had"
    assert {row["gpus"] for row in found.values()} == {0.25, share_of(3)}
    assert sum(RETRIED in row["flags"] for row in found.values()) == MOST_OVERFLOWS


def test_a_trial_that_was_cut_or_raised_is_recorded_with_its_cause_and_share(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.5, SUPER_FT: 0.5}, "search.trials=1")
    place.fill()
    place.end("0", Cut("cut after 20 s (resources.trial_seconds)"))
    place.dispatcher.lost("1", "RuntimeError: on fire", node_died=False)
    errors = [(row["status"], row["error"], row["gpus"]) for row in rows(place).values()]
    assert errors == [
        ("failed", "cut after 20 s (resources.trial_seconds)", 0.5),
        ("failed", "RuntimeError: on fire", 0.5),
    ]
    assert place.dispatcher.idle


def test_a_trial_lost_with_its_node_is_put_back_until_it_is_enough(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.5, SUPER_FT: 0.5}, "search.trials=1", "baselines=[]")
    for number in range(MAX_RETURNS + 1):
        assert len(place.fill()) == 1
        assert rows(place) == {}
        place.dispatcher.lost(str(number), "the node died", node_died=True)
    assert place.fill() == []
    assert [row["error"] for row in rows(place).values()] == ["the node died"]


def test_a_trial_that_found_no_store_is_put_back_and_stops_the_study_when_that_goes_on(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.5, SUPER_FT: 0.5}, "search.trials=1", "baselines=[]")
    for number in range(MAX_RETURNS + 1):
        assert place.trouble.cause is None
        assert len(place.fill()) == 1
        place.end(str(number), StoreLost("node a: the store is gone"))
    assert place.trouble.cause == "node a: the store is gone"
    assert rows(place) == {}, "it is run again by whoever continues the study"


def test_a_gpu_that_torch_does_not_find_stops_the_study_without_a_row(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 64, 1)], {NONE: 0.5, SUPER_FT: 0.5}, "search.trials=1", "baselines=[]")
    place.fill()
    place.end("0", NoGpu("node a: this process was given GPU 0, but its torch is built without CUDA"))
    assert place.trouble.cause == "node a: this process was given GPU 0, but its torch is built without CUDA"
    assert rows(place) == {}, "it is run again by whoever continues the study"


def test_reports_of_strangers_are_ignored(tmp_path: Path) -> None:
    place = desk(tmp_path, [Node("a", 1)], {NONE: 0.0, SUPER_FT: 0.0})
    place.fill()
    place.dispatcher.report("stranger", Row("{}"))
    place.dispatcher.lost("stranger", "?", node_died=False)
    assert rows(place) == {}
    assert not place.dispatcher.idle


@pytest.mark.parametrize("slots", [1, 5])
def test_any_mixture_of_sizes_comes_to_its_end(slots: int, tmp_path: Path) -> None:
    labels = [
        f"{attack}/{line}" for attack in ("badnets", "blended") for line in ("none/baseline", "ft/baseline", "super_ft")
    ]
    shares = {label: share_of(k) for k, label in enumerate(labels, start=1)}
    place = desk(
        tmp_path,
        [Node("a", slots, 2)],
        shares,
        "attacks=[badnets, blended]",
        "defenses=[super_ft]",
        "baselines=[none, ft]",
        "search.trials=20",
    )
    place.end_all()
    assert place.driver.finished
    assert len(place.driver.ledger) == 2 * 2 + 2 * 20
    assert place.driver.remaining().total() == 0
