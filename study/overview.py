"""What people read on a terminal: listings, the plan of a study, how far it is."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import search_spaces
from study.folder import LEDGER_FILE, stored_spec
from study.ledger import Ledger
from study.plan import check_plan, estimate_cost, load_data, make_plan
from study.progress import describe, duration
from study.settings import read_yaml_mapping
from study.spec import StudySpec, recipe_names, recipe_path
from study.tables import front_summary
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.models import MODELS
from trainables.sources import SOURCES


def listing(what: str) -> list[tuple[str, str]]:
    """(name, one line) of all attacks, defenses, datasets, models, recipes or spaces."""
    match what:
        case "attacks":
            return [(name, _first_line(ATTACKS.get(name))) for name in ATTACKS.names()]
        case "defenses":
            return [(name, _first_line(DEFENSES.get(name))) for name in DEFENSES.names()]
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
                        f"{key} {_range(item)}" for key, item in search_spaces.get_space(name).distributions.items()
                    ),
                )
                for name in search_spaces.names()
            ]
        case _:
            raise ValueError(f"nothing is listed as {what!r}")


def plan_summary(spec: StudySpec) -> str:
    """What a study would do: victims, trials, cost in E (one epoch of training on the whole training set)."""
    plan = make_plan(spec)
    dataset, upstream = load_data(spec)
    check_plan(plan, dataset, upstream)
    cost = estimate_cost(plan, dataset, upstream)
    searched = sum(len(search.cells) for search in plan.searches) * spec.search.trials
    cpus = os.cpu_count() or 1
    lines = [
        f"study {spec.name}: {spec.dataset} ({len(dataset.train)} training and {len(dataset.test)} test images of "
        f"{dataset.image_size} pixels, {dataset.num_classes} classes), "
        f"{spec.model}{f' of width {spec.width}' if spec.width else ''}",
        f"victims:   {len(plan.victims())} (clean controls included), {cost.victims:.1f} E unless the store has them",
        f"baselines: {len(plan.baselines)} trials, {cost.baselines:.1f} E",
        f"searches:  {len(plan.searches)} of {spec.search.trials} settings each ({spec.search.sampler}), {searched} "
        f"trials, {cost.searches:.1f} E if a setting costs what the published one does",
        f"total:     {plan.total_jobs} trials, {cost.total:.1f} E; 1 E is one epoch on all {len(dataset.train)} images",
        f"here:      {max(1, cpus // spec.resources.cpus_per_trial)} trials side by side on {cpus} CPUs",
    ]
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


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


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
