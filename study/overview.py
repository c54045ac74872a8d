"""What people read on a terminal: listings, the plan of a study, how far it is."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import torch

from search_spaces import space as search_spaces
from study.plan.forecast import look_ahead, plan_lines
from study.plan.gpu_shares import read_measurements
from study.plan.jobs import check_plan, load_data, make_plan
from study.plan.slots import Node
from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.words import describe, duration
from study.report.terminal import front_summary
from study.spec.load import recipe_names, recipe_path
from study.spec.samplers import SAMPLERS
from study.spec.schema import StudySpec
from study.spec.trackers import TRACKERS
from study.spec.yaml_io import SpecError, read_yaml_mapping
from trainables.attacks.base import ATTACKS
from trainables.data.sources.base import SOURCES
from trainables.defenses.base import DEFENSES
from trainables.models.build import MODELS
from trainables.plugins.load import Plugin, loaded, plugin_of
from trainables.registry import Registry


def listing(what: str) -> list[tuple[str, str]]:
    """(name, one line) of all attacks, defenses, datasets, models, spaces, ... or recipes."""
    match what:
        case "attacks":
            return [(name, _first_line(ATTACKS.get(name))) for name in ATTACKS.names()]
        case "defenses":
            return [(name, _first_line(DEFENSES.get(name))) for name in DEFENSES.names()]
        case "datasets":
            own = ("folder:PATH", "your own images: PATH/train/CLASS/*, PATH/test/CLASS/*, or a zip of the same")
            return [*((name, source.description) for name, source in SOURCES.items()), own]
        case "models":
            return [(name, model.description) for name, model in MODELS.items()]
        case "recipes":
            return [(name, _recipe_line(name)) for name in recipe_names()]
        case "spaces":
            return [
                (
                    name,
                    ", ".join(
                        f"{key} {_range(item)}" for key, item in search_spaces.get_space(name).distributions.items()
                    ),
                )
                for name in search_spaces.names()
            ]
        case "samplers":
            return [(name, sampler.description) for name, sampler in SAMPLERS.items()]
        case "trackers":
            return [(name, tool.description) for name, tool in TRACKERS.items()]
        case "figures":
            from study.report.figures.registry import FIGURES  # here: it brings the drawing libraries

            return [(name, _first_line(draw)) for name, draw in FIGURES.items()]
        case "plugins":
            return [(plugin.module, f"{plugin}, {_brings(plugin)}") for plugin in loaded()]
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


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _brings(plugin: Plugin) -> str:
    """What a plug-in has registered."""
    found = [
        f"{registry.kind} {name}"
        for registry in Registry.all()
        for name in registry.names()
        if plugin_of(registry.module_of(name)) == plugin
    ]
    return ", ".join(found) or "which registers nothing"


def _recipe_line(name: str) -> str:
    first = recipe_path(name).read_text().splitlines()[0]
    text = first.removeprefix("#").strip() if first.startswith("#") else ""
    return text or str(read_yaml_mapping(recipe_path(name)).get("dataset"))


def _range(distribution: object) -> str:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return "{" + ", ".join(map(str, choices)) + "}"
    low, high, log = (getattr(distribution, name) for name in ("low", "high", "log"))
    return f"{low:g}..{high:g}{' log' if log else ''}"
