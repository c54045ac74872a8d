"""Simulated searches: which samplers, over which seeds, on all processors."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.storages import InMemoryStorage

from study.plan.jobs import Plan, Search, make_plan
from study.record.columns import PARAM
from study.results.pareto import non_dominated_indices
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.search.warm_start import WarmPoint, points_for
from study.simulate.clock import LedgerInMemory, Oracle, Trace, run_in_virtual_time
from study.simulate.surrogate import Surrogate
from study.simulate.table import Table
from study.spec.load import make_spec, with_plugins
from study.spec.over_attacks import MEAN
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, merge_assignments
from trainables.registry import nearest

# Keys of `search` that a sampler of --samplers may be given with it.
KEYS = ("startup", "startup_trials", "history", "accuracy_floor", "warm_start")
OTHERS = "others"


@dataclass(frozen=True)
class Variant:
    """A sampler with settings of its search, as ``tpe:startup=qmc:startup_trials=20``.

    Args:
        name: as it was written.
        assignments: ``search.key=value``.
        warm: whether each search begins with what the table knows of the other attacks.
    """

    name: str
    assignments: tuple[str, ...]
    warm: bool = False


@dataclass(frozen=True)
class Question:
    """What is simulated.

    Args:
        table: the settings' values.
        surrogates: by attack.
        variants: the searches to compare.
        trials: settings of each search.
        seeds: repeats; a repeat has the same seed, and the same noise, for all variants.
        slots: trials at a time.
        per: ``attack``: a search for each attack. ``all``: one, each setting scored over all of them.
        noise: whether searches are told values with the noise between seeds.
        plugins: modules or files with samplers of the user's own.
    """

    table: Table
    surrogates: Mapping[str, Surrogate]
    variants: tuple[Variant, ...]
    trials: int
    seeds: int
    slots: int
    per: str
    noise: bool
    plugins: tuple[str, ...] = ()

    def plan(self, variant: Variant, seed: int) -> Plan:
        """The simulated study (SpecError where it cannot be)."""
        return make_plan(_spec(self, variant, seed))


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Samplers separated by commas, each with ``:key=value`` behind it (SpecError)."""
    found: list[Variant] = []
    for name in (part.strip() for part in text.split(",")):
        sampler, *settings = name.split(":")
        if not sampler or name in {one.name for one in found}:
            raise SpecError(f"--samplers {text!r}: {'an empty name' if not sampler else f'{name} stands there twice'}")
        assignments, warm = [f"search.sampler={sampler}"], False
        for setting in settings:
            key, sign, value = setting.partition("=")
            if key not in KEYS or not sign:
                raise SpecError(f"--samplers {name}: unknown setting {setting!r}: {nearest(key, KEYS)}")
            if key != "warm_start":
                assignments.append(f"search.{setting}")
            elif value != OTHERS:
                raise SpecError(f"--samplers {name}: warm_start must be {OTHERS} (the table's other attacks)")
            else:
                warm = True
        found.append(Variant(name, tuple(assignments), warm))
    return tuple(found)


def check(question: Question) -> None:
    """Refuse, before anything runs, what cannot be simulated (SpecError)."""
    rule = question.table.spec.search.aggregate
    if question.per == "all" and rule != str(MEAN):
        raise SpecError(
            f"--per all: settings are scored by means here, and this study took the attacks together by {rule}; give "
            "--per attack"
        )
    for variant in question.variants:
        try:
            plan = question.plan(variant, 0)
        except SpecError as error:
            raise SpecError(f"--samplers {variant.name}: {error}") from error
        if variant.warm and (question.per == "all" or len(question.table.attacks) < 2):
            raise SpecError(
                f"--samplers {variant.name}: a warm start from other attacks needs a table of several, and --per attack"
            )
        floor = plan.spec.search.accuracy_floor
        if floor is not None:
            least = min(_least_drop(question.table, attack) for attack in question.table.attacks)
            if least > floor:
                raise SpecError(
                    f"--samplers {variant.name}: accuracy_floor {floor:g} is kept by no setting of the table; the "
                    f"least that one gives up is {least:.4f}"
                )


def _least_drop(table: Table, attack: str) -> float:
    rows = table.means(attack)
    return float((rows["accuracy_before"] - rows["clean_accuracy"]).min())


def simulate(
    question: Question, jobs: int | None, say: Callable[[int, int], None]
) -> dict[str, list[dict[str, Trace]]]:
    """All repeats of all variants: by the variant's name, for each seed the traces by the label of the search.

    Args:
        jobs: processes; None: as many as this process may use processors. 1 runs in this process.
        say: called with (done, total) as they end.
    """
    tasks = [(variant, seed) for seed in range(question.seeds) for variant in range(len(question.variants))]
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    found: dict[str, list[dict[str, Trace]]] = {variant.name: [] for variant in question.variants}

    def keep(done: int, task: tuple[int, int], traces: dict[str, Trace]) -> None:
        found[question.variants[task[0]].name].append(traces)
        say(done, len(tasks))

    if jobs == 1:
        for done, task in enumerate(tasks, start=1):
            keep(done, task, run_once(question, *task))
        return found
    # Spawned: a fork of a process with PyTorch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(question,)) as pool:
        for done, (task, traces) in enumerate(zip(tasks, pool.map(_run, tasks), strict=True), start=1):
            keep(done, task, traces)
    return found


def run_once(question: Question, variant: int, seed: int) -> dict[str, Trace]:
    """One simulated study: the traces of its searches by their label."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = question.variants[variant]
    plan = question.plan(chosen, seed)
    warm = {search.label: _from_others(question.table, plan, search) for search in plan.searches} if chosen.warm else {}
    driver = Driver(plan, LedgerInMemory(), open_searches(plan, InMemoryStorage(), warm))
    oracle = Oracle(question.table, question.surrogates, seed if question.noise else None)
    return run_in_virtual_time(driver, oracle, question.slots)


_QUESTION: list[Question] = []


def _begin(question: Question) -> None:
    """In a new process: the question travels once, not with each task."""
    _QUESTION.append(question)


def _run(task: tuple[int, int]) -> dict[str, Trace]:
    return run_once(_QUESTION[0], *task)


def _spec(question: Question, variant: Variant, seed: int) -> StudySpec:
    own = question.table.spec.model_dump(mode="json", exclude={"curve", "aftermath"})
    kept = {key: own["search"][key] for key in ("space", "ranges", "published")}
    settings: dict[str, Any] = {
        **own,
        "name": "simulated",
        "attacks": question.table.attacks,
        "defenses": [question.table.label],
        "baselines": [],
        "seeds": [seed],
        "defense_seeds": [0],
        "tracking": [],
        "store": None,
        "search": {**kept, "trials": question.trials, "per": question.per},
    }
    return make_spec(with_plugins(merge_assignments(settings, variant.assignments), question.plugins))


def _from_others(table: Table, plan: Plan, search: Search) -> list[WarmPoint]:
    """Start-up points of a search: the fronts that the table holds of all attacks but its own."""
    own = {cell.attack for cell in search.cells}
    fronts = {}
    for attack in table.attacks:
        if attack not in own:
            rows = table.means(attack)
            front = rows.iloc[non_dominated_indices(rows[["asr", "clean_accuracy"]].to_numpy(dtype=float))]
            params = [
                dict(zip(table.space, row, strict=True)) for row in front[list(table.space)].to_numpy(dtype=object)
            ]
            settings = [table.search.space.to_settings(one) for one in params]
            columns = [{f"{PARAM}{key}": value for key, value in one.items()} for one in settings]
            fronts[attack] = pd.DataFrame(columns).assign(defense=search.defense)
    return points_for(search, fronts, plan.spec.search.startup_trials)
