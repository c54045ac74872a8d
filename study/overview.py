"""What people read on a terminal of a study: its plan, and how far it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from study.plan.costs import Work, work_left
from study.plan.data import Data, data_of
from study.plan.forecast import look_ahead, plan_lines
from study.plan.gpu_shares import read_measurements
from study.plan.jobs import Plan, Search, check_plan, load_data, make_plan, plan_on, read_data
from study.plan.slots import Node
from study.plan.targets import with_any_label
from study.record.ended import read_ended
from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.victims import absent, absent_in_words, decided
from study.record.words import ago, describe, duration, finished_at, in_columns
from study.report.terminal import front_summary
from study.results.left import dropped_in_words, plan_in, trials_left, with_chosen_detectors
from study.results.settings import aggregate_all, fronts, hypervolume_over_trials, models_of, of_repeat
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.attacks.base import ATTACKS
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource, outline
from trainables.job import Cell
from trainables.machine.cores import usable_cores
from trainables.storage.remote_store import open_store

PACE_TRIALS = 20  # the last so many tell how long the rest takes


def plan_summary(spec: StudySpec, directory: Path, nodes: Sequence[Node] = ()) -> str:
    """What a study, begun in ``directory`` or not, has left to do, what that costs and how long it takes.

    Ray is not started, and nothing is written. Where the data set is not on this machine, its published sizes do.

    Args:
        spec: of the study.
        directory: where it is, or would be.
        nodes: that it is planned for; none: this machine alone.

    Raises:
        SpecError, SettingError, DataError: bad input.
    """
    dataset, upstream, whole = _data_or_outline(spec)
    plan = plan_on(spec, dataset, upstream) if whole else make_plan(with_any_label(spec))
    check_plan(plan, dataset, upstream)
    rows = Ledger.read(directory / LEDGER_FILE).rows()
    judged = decided(directory, rows)
    plan = with_chosen_detectors(plan.without(absent(judged)), directory)
    work = work_left(plan, dataset, trials_left(plan, rows, read_ended(directory)))
    left = {item.label: item.trials for item in work}
    missing = _missing_victims(plan, dataset, upstream) if whole else None
    lines = plan_lines(plan, dataset, upstream, left, missing, done=len(rows))
    if not whole:
        lines.insert(1, "data:      not on this machine; planned from its published sizes, classes of equal size")
    lines += absent_in_words(judged, spec.victim.require_implanted)
    lines += ["", *_by_defense(work), "", *_by_attack(work), ""] if len(work) > 1 else []
    lines += [*_by_combination(work), ""] if spec.sweep and len(work) > 1 else []
    here = [Node("here", usable_cores(), torch.cuda.device_count())]
    try:
        ahead = look_ahead(plan, dataset, directory, nodes or here, left)
    except SpecError as error:  # a plan for other machines is a plan all the same
        where = "these nodes" if nodes else "this machine"
        lines.append(f"slots:     none on {where}: {error}")
    else:
        lines += [*ahead.slot_lines(), ahead.time_line(rows)]
    if not any(node.gpus for node in nodes or here):
        lines += [f"measured:  {name}: {item.describe()}" for name, item in read_measurements(directory).items()]
    return "\n".join(lines)


def _data_or_outline(spec: StudySpec) -> tuple[Data, Data | None, bool]:
    """The data sets, or what is known of their sizes; and whether they are here (DataError)."""
    try:
        return *load_data(spec), True
    except DataError as error:
        missing = error

        def known(source: DataSource) -> Dataset:
            if (dataset := outline(source.name, source.image_size)) is None:
                raise missing
            return dataset

        return *read_data(spec, known), False


def _missing_victims(plan: Plan, data: Data, upstream: Data | None) -> list[Cell] | None:
    """Victims that the store does not hold; None where the store cannot be asked."""
    try:
        store = open_store(plan.spec.store)
        return [cell for cell in plan.victims() if not store.holds(_victim_name(cell, data, upstream))]
    except OSError:
        return None


def _victim_name(cell: Cell, data: Data, upstream: Data | None) -> str:
    attackers = None if cell.upstream is None or upstream is None else data_of(upstream, cell.upstream)
    return cell.victim.name(data_of(data, cell.data), attackers)


def _by_defense(work: Sequence[Work]) -> list[str]:
    """The work left, one line per defense and role, the dearest first."""
    groups: dict[tuple[str, str], list[Work]] = {}
    for item in work:
        groups.setdefault((item.defense, item.role), []).append(item)
    table = [["defense", "role", "attacks", "trials", "E a trial", "E"]]
    for (defense, role), items in sorted(groups.items(), key=lambda pair: -sum(item.epochs for item in pair[1])):
        each = sorted({f"{item.each:.1f}" for item in items}, key=float)
        span = each[0] if len(each) == 1 else f"{each[0]} to {each[-1]}"
        trials, epochs = sum(item.trials for item in items), sum(item.epochs for item in items)
        table.append([defense, role, str(len({item.attack for item in items})), str(trials), span, f"{epochs:.1f}"])
    return in_columns(table, texts=2)


def _by_attack(work: Sequence[Work]) -> list[str]:
    """The work left, one line per attack."""
    groups: dict[str, list[Work]] = {}
    for item in work:
        groups.setdefault(item.attack, []).append(item)
    table = [["attack", "trials", "E"]]
    for attack, items in groups.items():
        table.append([attack, str(sum(i.trials for i in items)), f"{sum(i.epochs for i in items):.1f}"])
    return in_columns(table)


def _by_combination(work: Sequence[Work]) -> list[str]:
    """The work left, one line per combination of the sweep."""
    groups: dict[str, list[Work]] = {}
    for item in work:
        groups.setdefault(item.combination, []).append(item)
    table = [["combination", "trials", "E"]]
    for name, items in groups.items():
        table.append([name, str(sum(i.trials for i in items)), f"{sum(i.epochs for i in items):.1f}"])
    return in_columns(table)


def overview(directory: Path, *, called: str, now: float | None = None) -> str:
    """How far the study in ``directory`` is, read without touching it.

    Args:
        directory: a study's folder.
        called: what people call it.
        now: seconds since the epoch; tests pass their own.
    """
    spec = stored_spec(directory)
    ledger = Ledger.read(directory / LEDGER_FILE)
    rows, counts = ledger.rows(), Counter(row["status"] for row in ledger.rows())
    plan, judged = plan_in(directory, spec, rows), decided(directory, rows)
    left = trials_left(plan, rows, read_ended(directory))
    lines = [
        f"study {spec.name} in {called}: {len(rows)} of {len(rows) + left.total()} trials done"
        + (f" ({', '.join(f'{count} {status}' for status, count in sorted(counts.items()))})" if counts else ""),
        *_activity(rows, left.total(), time.time() if now is None else now),
        *absent_in_words(judged, spec.victim.require_implanted),
        *(f"note: {note}" for note in ledger.damaged),
        *(f"failed: {describe(row)}" for row in rows if row["status"] == "failed"),
    ]
    if rows:
        frame = ledger.to_frame()
        searches = [*_searches(plan, frame, left), *dropped_in_words(plan, rows)]
        lines += ["", *_victims(rows), "", *searches, "", front_summary(directory)]
    return "\n".join(lines)


def _activity(rows: Sequence[Mapping[str, Any]], left: int, now: float) -> list[str]:
    """When the last trial ended, what all took, and how long the rest takes at the pace of the last trials."""
    ends = sorted(end for row in rows if (end := finished_at(row)) is not None)
    lines = [f"time in trials: {duration(sum(row.get('wall_seconds') or 0 for row in rows))}"]
    if not ends:
        return [*lines, "finished"] if left == 0 else lines
    lines.insert(0, f"last trial ended {ago(max(0.0, now - ends[-1]))}")
    if left == 0:
        return [*lines, "finished"]
    recent = ends[-PACE_TRIALS:]
    if len(recent) > 2 and recent[-1] > recent[0]:
        seconds = left * (recent[-1] - recent[0]) / (len(recent) - 1)
        lines.append(f"time left: about {duration(seconds)} for {left} trials at the pace of the last {len(recent)}")
    else:
        lines.append(f"time left: unknown yet, for {left} trials")
    return lines


def _victims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models that trials were run on, as they were before repair (full test set)."""
    seen: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        if row.get("asr_before") is None or row["role"] == "control":
            continue
        of = row.get("combination") or ""
        key = (row["attack"], row["seed"], of and (row.get("victim") or of))  # combinations may share a victim
        if key not in seen or row["status"] == "backdoor_not_implanted":
            seen[key] = row
    swept = any(row.get("combination") for row in seen.values())
    table = [["victim", "seed", "ASR", "clean accuracy", "backdoor", *(["first met in"] if swept else [])]]
    for (attack, seed, _), row in seen.items():
        said = "implanted" if ATTACKS.get(attack).implants_backdoor else "none meant"
        said = "NOT IMPLANTED" if row["status"] == "backdoor_not_implanted" else said
        rates = [f"{row['asr_before']:.3f}", f"{row['clean_accuracy_before']:.3f}"]
        table.append([attack, str(seed), *rates, said, *([row["combination"]] if swept else [])])
    return in_columns(table)


def _searches(plan: Plan, frame: pd.DataFrame, left: Mapping[str, int]) -> list[str]:
    """Each search: settings done, size and hypervolume of its front on both halves."""
    if not plan.searches:
        return []
    table = [["search", "settings", "left", "front", "hypervolume", "report half", "models"]]
    parts = {number: of_repeat(frame, number) for number in sorted({search.repeat for search in plan.searches})}
    tables = {n: (hypervolume_over_trials(part), fronts(part), aggregate_all(part)) for n, part in parts.items()}
    for search in plan.searches:
        own, front, mine = (_of_search(part, search) for part in tables[search.repeat])
        volumes = [f"{own[half].iloc[-1]:.4f}" if len(own) else "-" for half in ("search", "report")]
        mine = mine[mine["role"] == "search"]
        models = models_of(mine.iloc[0]) if len(mine) else ""
        rest = -(-left.get(search.label, 0) // len(search.cells))
        table.append([search.label, str(len(own)), str(rest), str(len(front)), *volumes, models])
        if search.fresh:
            confirmed = frame.loc[frame["search"] == search.confirm_label, "trial"].value_counts()
            rest = -(-left.get(search.confirm_label, 0) // len(search.fresh))
            ready = str(int((confirmed >= len(search.fresh)).sum()))
            open_still = f"at most {rest}" if left.get(search.label) else str(rest)
            table.append([search.confirm_label, ready, open_still, "-", "-", "-", f"{len(search.fresh)} fresh models"])
    return in_columns(table)


def _of_search(table: pd.DataFrame, search: Search) -> pd.DataFrame:
    """The rows of a table of settings that are of one search's attack, defense and combination."""
    first = search.cells[0]
    same = (table["attack"] == search.group) & (table["defense_label"] == first.label)
    return table[same & (table["combination"] == first.combination)]
