"""How far a study is, in words for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.record.victims import absent_in_words
from study.record.words import ago, describe, duration, in_columns
from study.results.left import dropped_in_words
from study.results.search_states import SearchState
from study.watch.state import State, state_of

# Ledgers up to so many rows are shown with the settings of their fronts, which `superft front` prints of any.
ROWS_WITH_FRONTS = 1000
MOST_FAILED = 20  # lines


def overview(directory: Path, *, called: str, now: float | None = None) -> str:
    """How far the study in ``directory`` is, read without touching it.

    Args:
        directory: a study's folder.
        called: what people call it.
        now: seconds since the epoch; tests pass their own.
    """
    state = state_of(directory, called=called, now=now)
    done, left, counts = len(state.rows), state.left.total(), state.statuses
    failed = [f"failed: {describe(row)}" for row in state.failed[-MOST_FAILED:]]
    if (more := len(state.failed) - len(failed)) > 0:
        failed.insert(0, f"failed: {more} trials before these {MOST_FAILED}")
    lines = [
        f"study {state.spec.name} in {called}: {done} of {done + left} trials done"
        + (f" ({', '.join(f'{count} {status}' for status, count in counts.items())})" if counts else ""),
        *_driver(state),
        *_activity(state),
        *absent_in_words(state.judged, state.spec.victim.require_implanted),
        *(f"note: {note}" for note in state.damaged),
        *failed,
    ]
    if nodes := _nodes(state):
        lines += ["", *nodes]
    if not state.rows:
        return "\n".join(lines)
    searches = [*_searches(state.searches), *dropped_in_words(state.plan, state.rows)]
    lines += ["", *_victims(state), "", *searches, ""]
    if done > ROWS_WITH_FRONTS:
        lines.append(f"the settings on the fronts: superft front {called}")
    else:
        from study.report.terminal import front_summary  # here: tables are slow to import

        lines.append(front_summary(directory))
    return "\n".join(lines)


def _driver(state: State) -> list[str]:
    """Who runs the study, and what is going on there."""
    driver = state.driver
    if driver is None or state.state not in ("running", "silent"):
        return []
    seen, where = ago(max(0.0, state.looked - driver.seen)), f"process {driver.pid} on {driver.host}"
    if state.state == "silent":
        return [f"silent: {where}, last seen {seen}; if it is gone, the same command continues the study"]
    doing = driver.phase
    if driver.phase == "victims" and driver.victims is not None:
        doing = f"victims, {driver.victims_ready} of {driver.victims} ready"
    lines = [f"running: {doing} ({where}, seen {seen})"]
    if driver.victims_failed:
        lines[0] += f"; {driver.victims_failed} victims could not be trained"
    if driver.slots is not None:
        gpus = f"; {driver.gpus_busy:g} of {driver.gpus} GPUs given to them" if driver.gpus else ""
        lines.append(f"slots: {driver.running} of {driver.slots} busy{gpus}")
    return lines


def _activity(state: State) -> list[str]:
    """When the last trial ended, what all took, and how long the rest takes at the pace of the last trials."""
    left = state.left.total()
    lines = [f"time in trials: {duration(state.seconds_in_trials)}"]
    if state.last_ended is not None:
        lines.insert(0, f"last trial ended {ago(max(0.0, state.looked - state.last_ended))}")
    if not left:
        return [*lines, "finished"]
    if state.last_ended is None:
        return lines
    if state.seconds_left is None:
        return [*lines, f"time left: unknown yet, for {left} trials"]
    about = f"about {duration(state.seconds_left)} for {left} trials"
    return [*lines, f"time left: {about} at the pace of the last {state.pace_trials}"]


def _nodes(state: State) -> list[str]:
    """Nodes, where there were several or the driver says what they have."""
    nodes = state.nodes()
    if len(nodes) < 2 and not any(node["alive"] for node in nodes):
        return []
    table = [["node", "card", "CPUs", "GPUs", "running", "trials done"]]
    for node in nodes:
        has = [f"{node['cpus']:g}", str(node["gpus"]), str(node["running"])] if node["alive"] else ["gone", "-", "-"]
        table.append([node["name"], node["accelerator"] or "-", *has, str(node["done"])])
    return in_columns(table, texts=2)


def _victims(state: State) -> list[str]:
    """The models that trials were run on, as they were before repair (full test set)."""
    victims = state.victims()
    swept = any(one["combination"] for one in victims)
    table = [["victim", "seed", "ASR", "clean accuracy", "backdoor", *(["first met in"] if swept else [])]]
    for one in victims:
        backdoor = one["backdoor"].upper() if one["backdoor"] == "not implanted" else one["backdoor"]
        rates = [f"{one['asr']:.3f}", f"{one['clean_accuracy']:.3f}"]
        more = [one["combination"]] if swept else []
        table.append([one["attack"], str(one["seed"]), *rates, backdoor, *more])
    return in_columns(table)


def _searches(searches: Sequence[SearchState]) -> list[str]:
    """Each search: settings done, size and hypervolume of its front on both halves."""
    if not searches:
        return []
    table = [["search", "settings", "left", "front", "hypervolume", "report half", "models"]]
    for one in searches:
        rest = f"at most {one.left}" if one.at_most else str(one.left)
        volumes = [
            "-" if value is None else f"{value:.4f}" for value in (one.hypervolume_search, one.hypervolume_report)
        ]
        front = "-" if one.front is None else str(one.front)
        table.append([one.label, str(one.settings), rest, front, *volumes, one.models])
    return in_columns(table)
