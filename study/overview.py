"""What people read on a terminal: listings, the plan of a study, how far it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import search_spaces
from study.listings import first_line, range_in_words
from study.plan.forecast import look_ahead, plan_lines
from study.plan.gpu_shares import read_measurements
from study.plan.jobs import check_plan, load_data, make_plan
from study.plan.slots import Node
from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.words import describe, duration
from study.report.terminal import front_summary
from study.spec.load import recipe_names, recipe_path
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, read_yaml_mapping
from trainables.attacks.base import ATTACKS
from trainables.data.load import SOURCES
from trainables.defenses.base import DEFENSES
from trainables.models import MODELS


def listing(what: str) -> list[tuple[str, str]]:
    """(name, one line) of all attacks, defenses, datasets, models, recipes or spaces."""
    match what:
        case "attacks":
            return [(name, first_line(ATTACKS.get(name))) for name in ATTACKS.names()]
        case "defenses":
            return [(name, first_line(DEFENSES.get(name))) for name in DEFENSES.names()]
        case "datasets":
            own = ("folder:PATH", "your own images: PATH/train/CLASS/*, PATH/test/CLASS/*, or a zip of the same")
            return [*((name, source.description) for name, source in sorted(SOURCES.items())), own]
        case "models":
            return sorted(MODELS.items())
        case "recipes":
            return [(name, _recipe_line(name)) for name in recipe_names()]
        case "spaces":
            return [
                (
                    name,
                    ", ".join(
                        f"{key} {range_in_words(item)}"
                        for key, item in search_spaces.get_space(name).distributions.items()
                    ),
                )
                for name in search_spaces.names()
            ]
        case _:
            raise ValueError(f"nothing is listed as {what!r}")


def plan_summary(spec: StudySpec, directory: Path) -> str:
    """What a study, begun in ``directory`` or not, would do on this machine alone, and cost; Ray is not started."""
    plan = make_plan(spec)
    dataset, upstream = load_data(spec)
    check_plan(plan, dataset, upstream)
    nodes = [Node("here", os.cpu_count() or 1, torch.cuda.device_count())]
    lines = plan_lines(plan, dataset, upstream)
    try:
        ahead = look_ahead(plan, dataset, directory, nodes, plan.jobs_by_cell())
    except SpecError as error:  # a plan for other machines is a plan all the same
        lines.append(f"slots:     none on this machine: {error}")
    else:
        lines += [*ahead.slot_lines(), ahead.time_line(Ledger.read(directory / LEDGER_FILE).rows())]
    if not any(node.gpus for node in nodes):
        lines += [f"measured:  {name}: {item.describe()}" for name, item in read_measurements(directory).items()]
    return "\n".join(lines)


def overview(directory: Path, *, called: str) -> str:
    """How far the study in ``directory`` is, read without touching it; ``called`` is what people call the folder."""
    spec = stored_spec(directory)
    plan = make_plan(spec)
    ledger = Ledger.read(directory / LEDGER_FILE)
    rows = ledger.rows()
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    seconds = sum(row.get("wall_seconds") or 0 for row in rows)
    lines = [
        f"study {spec.name} in {called}: {len(rows)} of {plan.total_jobs} trials done"
        + (f" ({', '.join(f'{count} {status}' for status, count in sorted(counts.items()))})" if counts else ""),
        f"time in trials: {duration(seconds)}",
        *(f"note: {note}" for note in ledger.damaged),
        *(f"failed: {describe(row)}" for row in rows if row["status"] == "failed"),
    ]
    if rows:
        lines += ["", front_summary(directory)]
    return "\n".join(lines)


def _recipe_line(name: str) -> str:
    first = recipe_path(name).read_text().splitlines()[0]
    text = first.removeprefix("#").strip() if first.startswith("#") else ""
    return text or str(read_yaml_mapping(recipe_path(name)).get("dataset"))
