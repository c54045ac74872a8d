"""What people read of a study on a terminal before it starts: its plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from study.plan.costs import Work, victims_cost, work_left
from study.plan.data import Data, data_of
from study.plan.forecast import look_ahead, plan_lines
from study.plan.gpu_shares import read_measurements
from study.plan.jobs import Plan, check_plan, load_data, make_plan, plan_on, read_data
from study.plan.slots import Node
from study.plan.targets import with_any_label
from study.record.ended import read_ended
from study.record.folder import LEDGER_FILE
from study.record.ledger import Ledger
from study.record.victims import absent, absent_in_words, decided
from study.record.words import in_columns
from study.results.left import trials_left, with_chosen_detectors
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource, outline
from trainables.job import Cell
from trainables.machine.cores import usable_cores
from trainables.storage.remote_store import open_store

PACE_TRIALS = 20  # the last so many tell how long the rest takes


def plan_summary(
    spec: StudySpec, directory: Path, nodes: Sequence[Node] = (), epoch_seconds: float | None = None
) -> str:
    """What a study, begun in ``directory`` or not, has left to do, what that costs and how long it takes.

    Ray is not started, and nothing is written. Where the data set is not on this machine, its published sizes do.

    Args:
        spec: of the study.
        directory: where it is, or would be.
        nodes: that it is planned for; none: this machine alone.
        epoch_seconds: that 1 E takes on one of their GPUs (without any: in one slot); None: not known.

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
    lines += ["", *_by_defense(work, epoch_seconds), "", *_by_attack(work), ""] if len(work) > 1 else []
    lines += [*_by_combination(work), ""] if spec.sweep and len(work) > 1 else []
    here = [Node("here", usable_cores(), torch.cuda.device_count())]
    try:
        ahead = look_ahead(plan, dataset, directory, nodes or here, left)
    except SpecError as error:  # a plan for other machines is a plan all the same
        where = "these nodes" if nodes else "this machine"
        lines.append(f"slots:     none on {where}: {error}")
    else:
        lines += [*ahead.slot_lines(), ahead.time_line(rows)]
        if epoch_seconds is not None:
            victims = plan.victims() if missing is None else missing
            training = victims_cost(victims, dataset, upstream)
            lines.append(ahead.hours_line(epoch_seconds, training, len(victims), sum(item.epochs for item in work)))
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


def _by_defense(work: Sequence[Work], epoch_seconds: float | None) -> list[str]:
    """The work left, one line per defense and role, the dearest first; with hours where it is known what 1 E takes."""
    groups: dict[tuple[str, str], list[Work]] = {}
    for item in work:
        groups.setdefault((item.defense, item.role), []).append(item)
    table = [["defense", "role", "attacks", "trials", "E a trial", "E"]]
    table[0] += [] if epoch_seconds is None else ["hours"]
    for (defense, role), items in sorted(groups.items(), key=lambda pair: -sum(item.epochs for item in pair[1])):
        each = sorted({f"{item.each:.1f}" for item in items}, key=float)
        span = each[0] if len(each) == 1 else f"{each[0]} to {each[-1]}"
        trials, epochs = sum(item.trials for item in items), sum(item.epochs for item in items)
        hours = [] if epoch_seconds is None else [f"{epochs * epoch_seconds / 3600:.1f}"]
        attacks = str(len({item.attack for item in items}))
        table.append([defense, role, attacks, str(trials), span, f"{epochs:.1f}", *hours])
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
