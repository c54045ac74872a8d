"""What does racing save, and what does it cost a front? The study's own driver over a table of measured settings.

    python -m benchmarks.racing STUDY_OR_TABLE [--alpha 0.05] [--margin 0.005] [--slots 2] [--repeats 20]
                                               [--settings N] [--cells K] [--sampler tpe --trials 64]

STUDY_OR_TABLE is what `superft simulate` reads: a finished study's folder or a table.json. Its settings are searched
again with `search.racing`, over all attacks together, in virtual time, and each trial is answered by its own row. A
repeat has the settings in another order (the published point stays first) and draws other cells to begin with.

`cells` is the share that ran of the trials that a search without racing runs, `epochs` that of their E. `kept` is the
hypervolume of the front over that of all settings, `corner` the same in the box of little ASR and little loss. `lost`
counts the settings of the whole front that were dropped, `good_lost` those of them that no measured setting dominates
up to the margin; `alpha` bounds the share of repeats that have any, `wrong`. `busy` is the share of slot time in trials
until no setting is left to begin.

With --cells K each attack has K cells that nobody measured: there a setting comes to its mean in the table and what a
cell of a measured setting nearby deviated from that one's mean. Such cells have no effects in common, which makes the
race harder than it would be.

With --sampler the settings are not the table's: a sampler proposes --trials of them, answered by the surrogate of
`superft simulate` with the same deviations, with racing and without. That asks what the search itself loses where a
dropped setting tells it no values: `kept` and `corner` are then over what the search without racing found.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage

from benchmarks.common import machine, record, summary
from search_spaces.space import fingerprint
from study.plan.jobs import Search, make_plan
from study.record.columns import DROPPED_BY
from study.results.chosen import front_rows
from study.results.pareto import hypervolume, hypervolume_box, non_dominated_indices
from study.results.scores import Values
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.search.warm_start import WarmPoint
from study.simulate.clock import LedgerInMemory
from study.simulate.surrogate import Answer, Surrogate, fit
from study.simulate.table import CELL, Table, read_table
from study.spec.load import make_spec
from study.spec.schema import StudySpec
from trainables.job import Job
from trainables.seeding import derive_seed

Place = tuple[str, int, int]
ANSWERED = ("asr", "clean_accuracy", "epochs", "seconds")  # in the order of `Answer`


@dataclass(frozen=True)
class Problem:
    """Settings and what they come to on every cell.

    Args:
        table: they are from.
        params: of each setting, the published point first.
        answers: for each setting by cell.
    """

    table: Table
    params: list[dict[str, Any]]
    answers: list[dict[Place, Answer]]

    @property
    def points(self) -> NDArray[np.float64]:
        """Means over all cells, (settings, 2): ASR and accuracy."""
        return np.array([_mean([(a.asr, a.clean_accuracy) for a in one.values()]) for one in self.answers])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--margin", type=float, default=0.005)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--settings", type=int, help="the first so many of the table; all of them unless given")
    parser.add_argument("--cells", type=int, help="of each attack, drawn instead of measured")
    parser.add_argument("--sampler", help="search with it instead of trying the settings of the table")
    parser.add_argument("--trials", type=int, default=64, help="settings that it proposes")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = read_table([asked.table])
    racing = {"alpha": asked.alpha, "margin": asked.margin}
    row: dict[str, Any] = {"table": table.spec.name, "sampler": asked.sampler, "attacks": len(table.attacks)}
    if asked.sampler:
        cells = asked.cells or len(measured(table).answers[0]) // len(table.attacks)
        surrogates, keys = fit(table, noise=True), {"sampler": asked.sampler, "trials": asked.trials}
        runs = [both(table, surrogates, cells, keys, racing, asked.slots, repeat) for repeat in range(asked.repeats)]
        row |= {"settings": asked.trials, "learned_from": surrogates[table.attacks[0]].settings}
        row |= {"cells_of_a_setting": cells * len(table.attacks), "drawn": True}
    else:
        problem = drawn(table, asked.cells) if asked.cells else measured(table)
        if asked.settings:
            problem = Problem(table, problem.params[: asked.settings], problem.answers[: asked.settings])
        runs = [race(problem, racing, asked.slots, repeat) for repeat in range(asked.repeats)]
        row |= {"settings": len(problem.params), "cells_of_a_setting": len(problem.answers[0])}
        row |= {"drawn": bool(asked.cells), "wrong": sum(run["good_lost"] > 0 for run in runs) / len(runs)}
    row |= {
        **racing,
        "slots": asked.slots,
        **{name: _rounded(summary([one[name] for one in runs])) for name in runs[0]},
    }
    record("racing", {**row, **machine(torch.device("cpu"))})


def measured(table: Table) -> Problem:
    """The settings of a table that have a row for every cell."""
    cells = set(table.frame[list(CELL)].itertuples(index=False, name=None))
    params, answers = list[dict[str, Any]](), list[dict[Place, Answer]]()
    for _, rows in table.frame.groupby("setting", sort=True):
        own = {
            (str(attack), int(seed), int(own_seed)): Answer(*map(float, values))
            for attack, seed, own_seed, *values in rows[[*CELL, *ANSWERED]].to_numpy(dtype=object)
        }
        if len(own) == len(cells):
            params.append(dict(zip(table.space, rows[list(table.space)].to_numpy(dtype=object)[0], strict=True)))
            answers.append(own)
    return Problem(table, params, answers)


def drawn(table: Table, cells: int) -> Problem:
    """The same settings on so many cells of each attack, with deviations from their means as in the table."""
    known, surrogates = measured(table), fit(table, noise=True)
    answers = list[dict[Place, Answer]]()
    for params, own in zip(known.params, known.answers, strict=True):
        x, found = table.encoded_params(params), dict[Place, Answer]()
        for attack in table.attacks:
            here = [one for (name, _, _), one in own.items() if name == attack]
            asr, accuracy = _mean([(one.asr, one.clean_accuracy) for one in here])
            true = Answer(asr, accuracy, here[0].epochs, here[0].seconds)
            for seed in range(cells):
                luck = derive_seed(seed, "racing benchmark")
                found[attack, seed, 0] = surrogates[attack].noisy(true, x, luck, params)
        answers.append(found)
    return Problem(table, known.params, answers)


def race(problem: Problem, racing: Mapping[str, float], slots: int, repeat: int) -> dict[str, float]:
    """One search over all settings with racing, and what became of it."""
    count = len(problem.params)
    order = [0, *(1 + np.random.default_rng(repeat).permutation(count - 1))]
    attacks, seeds, own_seeds = (list(dict.fromkeys(part)) for part in zip(*problem.answers[0], strict=True))
    keys = {"trials": count, "sampler": "random", "racing": racing}
    plan = make_plan(_spec(problem.table, attacks, seeds, own_seeds, keys))
    (search,) = plan.searches
    own = {fingerprint(search.settings(params)): number for number, params in enumerate(problem.params)}
    warm = {search.label: [WarmPoint(problem.params[number], "table") for number in order[1:]]}
    driver = Driver(plan, LedgerInMemory(), open_searches(plan, InMemoryStorage(), warm))
    busy = _run(driver, lambda job: problem.answers[own[fingerprint(job.settings)]][job.cell.place], slots)
    rows = driver.ledger.rows()
    if not driver.finished or driver.searches[0].asked != count:
        raise RuntimeError(f"{driver.searches[0].asked} of {count} settings were searched")
    seen: dict[int, int] = {}
    for row in rows:
        settings = {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
        number = own[fingerprint({key: settings[key] for key in search.published_settings()})]
        seen[number] = seen.get(number, 0) + 1
    cells = len(search.cells)
    whole = [number for number in range(count) if seen[number] == cells]
    points, before = problem.points, float(problem.table.frame["accuracy_before"].mean())
    lost = [number for number in non_dominated_indices(points) if number not in whole]
    return {
        "cells": len(rows) / (count * cells),
        "epochs": sum(row["forward_samples"] for row in rows)
        / sum(one.epochs for answers in problem.answers for one in answers.values()),
        "kept": hypervolume(points[whole]) / hypervolume(points),
        "corner": hypervolume_box(points[whole], before) / hypervolume_box(points, before),
        "dropped": count - len(whole),
        "lost": len(lost),
        "good_lost": sum(_is_good(points[number], points[whole], racing["margin"]) for number in lost),
        "busy": busy,
    }


def both(
    table: Table,
    surrogates: Mapping[str, Surrogate],
    cells: int,
    keys: Mapping[str, Any],
    racing: Mapping[str, float],
    slots: int,
    repeat: int,
) -> dict[str, float]:
    """The same search with racing and without; hypervolumes of the true values of what each has on its front."""
    volumes, corners, rows, dropped = list[float](), list[float](), list[int](), 0
    for asked in (None, racing):
        plan = make_plan(_spec(table, table.attacks, [repeat], range(cells), {**keys, "racing": asked}))
        (search,) = plan.searches
        known: dict[str, dict[str, Answer]] = {}

        def answer(job: Job, known: dict[str, dict[str, Answer]] = known, search: Search = search) -> Answer:
            params, attack = search.space.to_params(job.settings), job.cell.attack
            x, one, own = table.encoded_params(params), surrogates[attack], known.setdefault(job.trial, {})
            if attack not in own:
                own[attack] = one.answer(x)
            return one.noisy(own[attack], x, derive_seed(repeat, "cell", job.cell.defense_seed), params)

        driver = Driver(plan, LedgerInMemory(), open_searches(plan, InMemoryStorage()))
        _run(driver, answer, slots)
        found = front_rows(search, driver.ledger.rows(), ())
        front = [_mean([(one.asr, one.clean_accuracy) for one in known[row["trial"]].values()]) for row in found]
        before = float(np.mean([one.before for one in surrogates.values()]))
        volumes.append(hypervolume(front))
        corners.append(hypervolume_box(front, before))
        rows.append(len(driver.ledger))
        dropped = sum(bool(row.get(DROPPED_BY)) for row in driver.ledger.rows())
    return {
        "cells": rows[1] / rows[0],
        "kept": volumes[1] / volumes[0],
        "corner": corners[1] / corners[0],
        "hypervolume": volumes[1],
        "dropped": dropped,
    }


def _spec(
    table: Table, attacks: Sequence[str], seeds: Sequence[int], own_seeds: Sequence[int], keys: Mapping[str, Any]
) -> StudySpec:
    own = table.spec.model_dump(mode="json", exclude={"curve", "aftermath"})
    return make_spec(
        {
            **own,
            "attacks": [*attacks],
            "defenses": [table.label],
            "baselines": [],
            "seeds": [*seeds],
            "defense_seeds": [*own_seeds],
            "tracking": [],
            "store": None,
            "search": {**{key: own["search"][key] for key in ("space", "ranges")}, "per": "all", **keys},
        }
    )


def _run(driver: Driver, answer: Callable[[Job], Answer], slots: int) -> float:
    """Run a search to its end in virtual time; the share of slot time in trials while there were settings to begin."""
    running: list[tuple[float, int, Job, Answer]] = []
    clock, begun, work, until = 0.0, 0, 0.0, 0.0
    (search,) = driver.searches
    while True:
        while len(running) < slots and (job := driver.next_job()) is not None:
            one = answer(job)
            heapq.heappush(running, (clock + one.seconds, begun, job, one))
            begun, work = begun + 1, work + one.seconds
            if search.asked < search.target:
                until = clock
                used = work - sum(end - clock for end, *_ in running)
        if not running:
            return used / (slots * until) if until else 1.0
        clock, _, job, one = heapq.heappop(running)
        driver.finish(job, _row(job, one))


def _row(job: Job, one: Answer) -> dict[str, Any]:
    return {
        **job.cell.columns(),
        "status": "ok",
        "error": None,
        "wall_seconds": one.seconds,
        "asr_search": one.asr,
        "clean_accuracy_search": one.clean_accuracy,
        "train_size": 1,
        "forward_samples": one.epochs,
        "backward_samples": one.epochs,
        **{f"param.{key}": value for key, value in job.settings.items()},
    }


def _is_good(point: NDArray[np.float64], rivals: NDArray[np.float64], margin: float) -> bool:
    """Whether no rival dominates a point up to the margin, see `study.search.racing`."""
    asr, accuracy = rivals.T
    near = (asr <= point[0] + margin) & (accuracy >= point[1] - margin)
    return not bool((near & ((asr < point[0]) | (accuracy > point[1]))).any())


def _mean(values: list[Values]) -> Values:
    asr, accuracy = np.mean(values, axis=0)
    return float(asr), float(accuracy)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
