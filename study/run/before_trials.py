"""What a study does on Ray before its trials: victims, and one measured trial of each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from study.plan.forecast import Forecast
from study.plan.gpu_shares import LONGEST_SECONDS, MEASURED_FILE, Kind, Measurement, write_measurements
from study.plan.jobs import Plan
from study.plan.slots import describe_share, next_larger
from study.record.cost import epochs
from study.record.folder import Folder
from study.record.remote_folder import RemoteFolder
from study.record.stopped import StudyStoppedError
from study.record.victims import VICTIMS_FILE, Judged, Key, NoBackdoorError, absent, each_once, write_victims
from study.run.on_tune import MAX_FAILURES, cause, root
from study.run.progress import Progress
from study.spec.plugins import as_plugins
from study.spec.schema import StudySpec
from trainables.job import Cell
from trainables.plugins.parcels import packed
from trainables.storage.store import StoreUnavailableError


@dataclass(frozen=True)
class Made:
    """The victims of a study: those that could not be made (`Cell.made_from`), with the cause, and what is known of the
    others."""

    failed: Mapping[Hashable, str]
    judged: Mapping[Key, Judged]


def check_implanted(judged: Mapping[Key, Judged], spec: StudySpec) -> None:
    """Stop a study that wants that (NoBackdoorError)."""
    if spec.victim.require_implanted == "stop" and (missing := absent(judged)):
        without, every = each_once(missing.values()), each_once(judged.values())
        raise NoBackdoorError(
            f"no backdoor in {len(without)} of {len(every)} victims, so no trial is run (victim.require_implanted: "
            f"stop): {'; '.join(map(str, without))}"
        )


def settle(
    known: Mapping[Key, Judged], now: Mapping[Key, Judged], home: Folder | RemoteFolder, progress: Progress
) -> dict[Key, Judged]:
    """Which victims hold a backdoor for the rest of the study, kept in its folder: what was decided before stands."""
    for key in known.keys() & now.keys():
        if (known[key].not_implanted is None) != (now[key].not_implanted is None):
            progress.say(f"WARNING: when the study began: {known[key]}; now: {now[key]}; what was decided then stands")
    both = {**known, **{key: one for key, one in now.items() if key not in known}}
    if both:
        write_victims(home.path, both.values())
        home.keep(VICTIMS_FILE)
    return both


def make_victims(
    plan: Plan, progress: Progress, gpus: float, store: str, cost: Callable[[Cell], float] = lambda _: 0.0
) -> Made:
    """Train the victims that are missing, side by side: the controls begin, then the dearest.

    Args:
        gpus: of each; one that runs out of memory is trained again with the next larger share.
        store: of victims.
        cost: planned E of one, see `plan.costs.victim_cost`.
    """
    import ray

    from trainables.machine.out_of_memory import is_out_of_memory
    from trainables.tune import train_victim

    cpus, plugins = plan.spec.resources.cpus_per_trial, packed(as_plugins(plan.spec.plugins))

    def start(cell: Cell, gpus: float) -> Any:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=MAX_FAILURES)(train_victim)
        return task.remote(cell, store, cpus, gpus, plugins)

    waiting = {start(cell, gpus): (cell, gpus) for cell in plan.victims(cost)}
    failed: dict[Hashable, str] = {}
    judged: dict[Key, Judged] = {}
    users: dict[Hashable, set[Key]] = {}
    for cell in plan.cells:
        users.setdefault(cell.made_from, set()).add(cell.whose)
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        cell, had = waiting.pop(ready[0])
        name = f"victim {cell.victim.attack} (seed {cell.seed})"
        try:
            facts = ray.get(ready[0])
            progress.victim(facts)
            known = {item.name: facts[item.name] for item in dataclasses.fields(Judged) if item.name in facts}
            for key in sorted(users.get(cell.made_from, ())):
                judged[key] = Judged(**{**known, "combination": key[-1]})
        except ray.exceptions.RayError as error:
            larger = next_larger(had)
            stop_for(error)
            if is_out_of_memory(root(error)) and larger is not None and had == gpus:
                progress.say(
                    f"{name}: out of memory on {describe_share(had)} GPU; once more on {describe_share(larger)}"
                )
                waiting[start(cell, larger)] = (cell, larger)
            else:
                failed[cell.made_from] = f"victim: {cause(error)}"
                progress.victim_failed(name, cause(error))
    return Made(failed, judged)


def measure_kinds(
    ahead: Forecast, progress: Progress, store: str, home: Folder | RemoteFolder, broken: Mapping[Hashable, str]
) -> dict[str, Measurement]:
    """One trial of each kind that is not measured yet, each on a card of its own; kept in the study's folder.

    Args:
        broken: victims that could not be made; a kind that has only those is left out.
    """
    import ray

    from trainables.tune import measure_trial

    limit = min(LONGEST_SECONDS, ahead.plan.spec.resources.trial_seconds or LONGEST_SECONDS)
    # A process of its own each: its context is measured too.
    task = ray.remote(num_cpus=ahead.cpus, num_gpus=1, max_calls=1, max_retries=MAX_FAILURES)(measure_trial)
    plugins = packed(as_plugins(ahead.plan.spec.plugins))
    waiting: dict[Any, Kind] = {}
    for kind in ahead.missing():
        whole = [cell for cell in kind.cells if cell.made_from not in broken]
        if whole:
            asked = ahead.plan.aftermath_of(kind.labels)
            job = task.remote(whole[0], dict(kind.settings), store, ahead.cpus, limit, plugins, asked)
            waiting[job] = kind
    cards = {node.name: node.accelerator for node in ahead.nodes}
    found: dict[str, Measurement] = {}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        kind = waiting.pop(ready[0])
        try:
            found[kind.name] = _measurement(ray.get(ready[0]), cards)
        except ray.exceptions.RayError as error:
            stop_for(error)
            progress.say(f"WARNING: {kind.name} could not be measured, its trials get a whole GPU: {cause(error)}")
            continue
        write_measurements(home.path, {**ahead.measured, **found})
        home.keep(MEASURED_FILE)
    return found


def stop_for(error: Exception) -> None:
    """Raise StudyStoppedError for what would stop every trial: a store that does not answer, a GPU that torch does not
    find."""
    from trainables.machine.device import NoGpuError

    if isinstance(found := root(error), StoreUnavailableError | NoGpuError):
        raise StudyStoppedError(str(found)) from error


def _measurement(seen: Mapping[str, Any], cards: Mapping[str, str]) -> Measurement:
    work = epochs(seen["forward_samples"], seen["backward_samples"], seen["input_backward_samples"], seen["train_size"])
    named = {item.name: seen[item.name] for item in dataclasses.fields(Measurement) if item.name in seen}
    return Measurement(**named, accelerator=cards.get(seen["node"], ""), epochs=float(work))
