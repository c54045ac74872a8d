"""What planned work costs, in E: one E is the compute of one training epoch on the attacker's whole training set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.plan.data import Data, data_of
from study.plan.jobs import CONFIRM, Plan, held
from study.record.cost import epochs
from trainables.aftermath import planned_work, shadow_work
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.job import Cell
from trainables.scenarios import take_over_work
from trainables.training.loop import Counters
from trainables.victims.spec import VictimSpec, attacker_indices, attacker_labels


@dataclass(frozen=True)
class Work:
    """What is left of a search or of a baseline.

    Args:
        label: of the search or baseline.
        attack: its attack; ``all`` for a search over all of them.
        defense: the label of its defense.
        role: ``search``, ``confirm``, ``baseline`` or ``control``.
        trials: to be run; of a search with a budget, as many as fit if a setting costs what the published one does;
            of what is to be confirmed, at most so many.
        each: E of one of them; of a search, of the published point, the mean over its cells.
        epochs: E of all; of a search with a budget no more than that.
        combination: of a sweep; empty without one.
    """

    label: str
    attack: str
    defense: str
    role: str
    trials: int
    each: float
    epochs: float
    combination: str = ""


def trial_cost(cell: Cell, settings: Mapping[str, Any], data: Data) -> float:
    """Planned work of one trial, in E."""
    defense, dataset = DEFENSES.create(cell.defense, settings), data_of(data, cell.data)
    n_train = len(attacker_indices(cell.victim, dataset))
    work = defense.plan_for(dataset.num_classes, *held(defense, cell, dataset))
    return float(epochs(work.forward_samples, work.backward_samples, work.input_backward_samples, n_train))


@dataclass(frozen=True)
class AftermathWork:
    """What the aftermath of the trials that are left takes, beside their own work.

    Args:
        trials: whose models are asked.
        epochs: E on these models.
        shadow_epochs: E of training the shadow models, which the trials of a victim share; those there are ready cost
            nothing again.
    """

    trials: int
    epochs: float
    shadow_epochs: float


def aftermath_left(plan: Plan, data: Data, left: Mapping[str, int] | None = None) -> AftermathWork:
    """The aftermath of the trials that are left, as `work_left` counts those; a searched setting as the published."""
    left = plan.jobs_by_label() if left is None else left

    def cost(work: Counters, cell: Cell) -> float:
        unit = len(attacker_indices(cell.victim, data_of(data, cell.data)))
        return float(epochs(work.forward_samples, work.backward_samples, work.input_backward_samples, unit))

    total, trials, victims = 0.0, 0.0, dict[tuple[VictimSpec, bool], float]()

    def add(cell: Cell, settings: Mapping[str, Any], asked: Aftermath, count: float) -> None:
        nonlocal total
        total += count * cost(planned_work(asked, cell, settings, data_of(data, cell.data)), cell)
        victims.setdefault((cell.victim, cell.control), cost(shadow_work(asked, cell, data_of(data, cell.data)), cell))

    planned = plan.jobs_by_label()
    for job in plan.baselines:
        if job.aftermath is not None and (there := left.get(job.label, 0)):
            share = there / planned[job.label]
            trials += share
            add(job.cell, job.settings, job.aftermath, share)
    for search in plan.searches:
        if plan.aftermath is not None and not search.repeat and (there := left.get(search.label, 0)):
            trials += there
            for cell in search.cells:
                add(cell, search.priced_settings(), plan.aftermath, there / len(search.cells))
    return AftermathWork(round(trials), total, math.fsum(victims.values()))


def victims_cost(victims: Sequence[Cell], data: Data, upstream: Data | None = None) -> float:
    """E of making these victims, with all stages of their attacks; what several share is made once.

    The most it can cost where an attack's `planned_work` is not exact, or where the store has what is shared.
    """
    parts: dict[Hashable, float] = {}
    for cell in victims:
        for key, cost in _parts(cell, data, upstream).items():
            parts.setdefault(key, cost)
    return math.fsum(parts.values())


def victim_cost(cell: Cell, data: Data, upstream: Data | None = None) -> float:
    """Planned E of making one victim by itself, see `victims_cost`."""
    return victims_cost([cell], data, upstream)


def _parts(cell: Cell, data: Data, upstream: Data | None) -> dict[Hashable, float]:
    """What a victim is made of, each part with its E: two victims that have a part of the same key share it."""
    victim, dataset = cell.victim, data_of(data, cell.data)
    attack, labels = victim.make_attack(), attacker_labels(victim, dataset)
    n = len(labels)
    theirs = None if upstream is None or cell.upstream is None else data_of(upstream, cell.upstream)
    made_from: tuple[VictimSpec, DataSource, DataSource | None] = cell.made_from
    works: dict[Hashable, Counters] = {}
    if victim.scenario == "new_head" and theirs is not None:
        assert cell.upstream is not None
        works[made_from] = take_over_work(n)
        # The model that is taken over is a victim of its own, on the attacker's data.
        released = dataclasses.replace(victim, scenario="standalone")
        made_from, labels, theirs = (released, cell.upstream, None), theirs.train.labels, None
    n_upstream = None if theirs is None else len(theirs.train)
    shared = attack.shared_work(labels, victim.recipe, n_upstream)
    own = attack.planned_work(labels, victim.recipe, n_upstream)
    spec, *where = made_from
    task = (dataclasses.replace(spec, attack="", attack_settings={}), *where)
    works |= {(task, name): work for name, work in shared.items()}
    works[made_from] = own - sum(shared.values(), Counters())
    return {
        key: float(epochs(work.forward_samples, work.backward_samples, work.input_backward_samples, n))
        for key, work in works.items()
    }


def curves_cost(plan: Plan, data: Data, left: Mapping[str, int] | None = None) -> tuple[int, float]:
    """Measurements along the repairs that are left, beside the one after each, and what they cost in E.

    They are no part of what a defense costs. A searched setting is taken to be as long as the published one.

    Args:
        plan, data, left: as for `work_left`.
    """
    every, points, cost = plan.spec.curve.every, 0, 0.0
    if every is None:
        return 0, 0.0
    left = plan.jobs_by_label() if left is None else left
    first = {job.label: (job.cell, job.settings) for job in reversed(plan.baselines)}
    first |= {search.label: (search.cells[0], search.priced_settings()) for search in plan.searches}
    for label, (cell, settings) in first.items():
        defense, dataset = DEFENSES.create(cell.defense, settings), data_of(data, cell.data)
        owned, validation = held(defense, cell, dataset)
        work = defense.plan_for(dataset.num_classes, owned, validation)
        along = work.backward_samples // max(1, owned) if every == "epoch" else work.steps // every
        count = left.get(label, 0) * (1 + along)
        points += count
        # Clean and triggered test images, forward alone.
        cost += count * epochs(2 * len(dataset.test), 0, 0, len(attacker_indices(cell.victim, dataset)))
    return points, float(cost)


def work_left(plan: Plan, data: Data, left: Mapping[str, int] | None = None) -> list[Work]:
    """The searches and baselines that have trials left, in the order of the plan.

    A searched setting is taken to cost what the published one does.

    Args:
        plan: of the study.
        data: the user's; an outline is enough.
        left: trials left by label; None: all of them.
    """
    left = plan.jobs_by_label() if left is None else left
    found: dict[str, Work] = {}
    for job in plan.baselines:
        if not left.get(job.label) or job.label in found:
            continue
        each, trials = trial_cost(job.cell, job.settings, data), left[job.label]
        named = {"attack": job.cell.attack, "defense": job.cell.label, "combination": job.cell.combination}
        found[job.label] = Work(job.label, role=job.role, trials=trials, each=each, epochs=each * trials, **named)
    budget = plan.spec.search.budget_epochs
    for search in plan.searches:
        if there := left.get(search.confirm_label, 0):
            of_each = [trial_cost(cell, search.priced_settings(), data) for cell in search.fresh]
            mean, label = math.fsum(of_each) / len(of_each), search.fresh[0].label
            if budget is not None and left.get(search.label):  # no more settings than fit
                there = min(there, max(1, math.floor(budget / mean)) * len(of_each))
            named = {"attack": search.group, "defense": label, "combination": search.fresh[0].combination}
            found[search.confirm_label] = Work(
                search.confirm_label, role=CONFIRM, trials=there, each=mean, epochs=mean * there, **named
            )
        if not (trials := left.get(search.label, 0)):
            continue
        paper, cells = search.priced_settings(), len(search.cells)
        one = math.fsum(trial_cost(cell, paper, data) for cell in search.cells)
        whole = one * trials / cells
        if budget is not None and whole > budget * cells:
            # The published point whatever it costs, and what else fits.
            settings = max(1, math.floor(budget * cells / one))
            trials, whole = min(trials, settings * cells), max(one, settings * one)
        first = search.cells[0]
        named = {"attack": search.group, "defense": first.label, "combination": first.combination}
        found[search.label] = Work(search.label, role="search", trials=trials, each=one / cells, epochs=whole, **named)
    return list(found.values())
