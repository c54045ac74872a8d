"""A trial of a study once more, in this process: its cell and settings from the study's folder, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from study.plan.jobs import Plan, prepare
from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger, Row
from study.record.remote_folder import open_folder
from study.run.one_trial import pick_device, run_job
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.columns import CIRCUMSTANCES
from trainables.evaluation.aftermath.settings import PARTS
from trainables.job import Cell, Job, Role
from trainables.models.classifier import Classifier
from trainables.registry import nearest
from trainables.storage.remote import Place


@dataclass(frozen=True)
class Found:
    """A trial of a study: the study's spec, all of its rows, and the trial's."""

    spec: StudySpec
    rows: list[Row]
    row: Row


def read_study(study: Place) -> tuple[StudySpec, list[Row]]:
    """Spec and rows of a study, of its folder or URI (SpecError: it is none)."""
    with open_folder(study) as folder:
        folder.fetch(rows_only=True)
        return stored_spec(folder.path), Ledger.read(folder.path / LEDGER_FILE).rows()


def find_trial(
    study: Place, trial: str, *, attack: str | None = None, seed: int | None = None, option: str = "--like"
) -> Found:
    """A trial of a study.

    Args:
        study: its folder or URI.
        trial: id of the setting.
        attack, seed: of the cell, where the setting was scored on several.
        option: what the trial was named with, for messages.

    Raises:
        SpecError: no such trial, or several to choose from.
    """
    spec, rows = read_study(study)
    return Found(spec, rows, _chosen(rows, trial, str(study), attack, seed, option))


def run_again(
    found: Found,
    *,
    store: Place | None = None,
    device: str | None = None,
    option: str = "--like",
    keep: Callable[[Classifier], None] | None = None,
    again: bool = True,
) -> Row:
    """Run a trial of a study again, on as many threads: its row now.

    Args:
        store: of victims, where it is not the study's.
        device: default: the CPU where the trial ran on one, else the card.
        option: what the trial was named with, for messages.
        keep: is given the repaired model.
        again: whether an aftermath that was measured is measured again.

    Raises:
        SpecError, SettingError, DataError: bad input; before any work.
    """
    spec, row = found.spec, found.row
    if store is not None:
        spec = spec.model_copy(update={"store": str(store)})
    plan, _, _ = prepare(spec)
    settings = {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
    role: Role = row["role"]
    asked = plan.spec.aftermath.resolved() if again and row.keys() & set(PARTS) else None
    job = Job(
        str(row["search"] or row["trial"]),
        row["trial"],
        role,
        _cell(plan, row, option),
        settings,
        bool(row["published"]),
        plan.spec.curve.every,
        asked,
    )
    given = "cpu" if device is None and str(row.get("device")).startswith("cpu ") else device
    # The row's own: the resources of a study may change while it runs.
    threads = row.get("threads") or plan.spec.resources.cpus_per_trial
    return run_job(plan.spec, job, pick_device(given), threads, keep)


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two rows say of the same trial and do not agree in, ``column: (then, now)``; nothing: it was repeated.

    Left out is what no two runs have in common: times and places, and what was found ready made.
    """
    columns = [name for name in then if name in now and name not in CIRCUMSTANCES]
    return {name: (then[name], now[name]) for name in columns if then[name] != now[name]}


def compared(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """`differences` for people, and what may explain them."""
    found = differences(now, then)
    if not found:
        return "  as in the study: every result is equal"
    lines = [f"  differs from the study's row in {len(found)} column{'' if len(found) == 1 else 's'}:"]
    shown = [name for name in ("status", "error", "asr", "clean_accuracy", "robust_accuracy") if name in found]
    lines += [f"    {name} {found[name][0]}, now {found[name][1]}" for name in shown or list(found)[:5]]
    where = ("device", "threads", "precision", "versions", "code", "plugins", "victim", "victim_trained_on")
    lines += [f"    {name}: {then.get(name)}, now {now.get(name)}" for name in where if then.get(name) != now.get(name)]
    return "\n".join(lines)


def _chosen(rows: list[Row], trial: str, study: str, attack: str | None, seed: int | None, option: str) -> Row:
    known = [row for row in rows if row["trial"] == trial]
    if not known:
        raise SpecError(
            f"{option}: no trial {trial!r} in {study}: {nearest(trial, sorted({row['trial'] for row in rows}))}"
        )
    found = [row for row in known if attack in (None, row["attack"]) and seed in (None, row["seed"])]
    if len(found) != 1:
        cells = ", ".join(f"--attack {row['attack']} --seed {row['seed']}" for row in known)
        raise SpecError(f"{option}: trial {trial} of {study} was run on {len(known)} cells; name one: {cells}")
    return found[0]


def _cell(plan: Plan, row: Mapping[str, Any], option: str) -> Cell:
    """The cell of the plan that a row is of."""
    for cell in plan.cells:
        columns = cell.columns()
        same = all(row[name] == value for name, value in columns.items() if name in row)
        if same and cell.control == (row["role"] == "control"):
            return cell
    raise SpecError(f"{option}: trial {row['trial']} is of no cell that the study's spec has; was its folder changed?")
