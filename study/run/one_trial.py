"""One combination in this process: the spec's checks without a study, and without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from search_spaces.space import published_for
from study.plan.jobs import prepare
from study.record.columns import SCHEMA, to_frame
from study.record.folder import check_store
from study.report.aftermath import in_words
from study.report.cells import detected
from study.spec.load import make_spec, without_sweep
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, merge_assignments
from trainables.defenses.base import DEFENSES
from trainables.job import Job
from trainables.machine.device import best_device, numbered
from trainables.models.classifier import Classifier
from trainables.plugins.load import load, load_installed
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store
from trainables.workbench import Workbench


def run_single(
    *,
    attack: str,
    defense: str,
    dataset: str,
    model: str | None = None,
    seed: int = 0,
    assignments: Sequence[str] = (),
    store: Place | None = None,
    download: bool = False,
    plugins: Sequence[str] = (),
    device: str | None = None,
) -> dict[str, Any]:
    """The ledger row of one trial at the published settings with ``assignments`` over them.

    It computes on ``resources.cpus_per_trial`` threads, as a study's trials do, however many cores there are.

    Raises:
        SpecError, SettingError, DataError: bad input, before any work.
    """
    settings: dict[str, Any] = {
        "name": "trial",
        "attacks": [attack],
        "baselines": [defense],
        "dataset": dataset,
        "seeds": [seed],
        "download": download,
        "plugins": list(plugins),
        "store": None if store is None else str(store),
    }
    if model is not None:
        settings["model"] = model
    load_installed()
    load(plugins)
    own = {field.name for field in dataclasses.fields(DEFENSES.get(defense))}
    merged = merge_assignments(settings, [_qualify(item, defense, own) for item in assignments])
    fixed = ("attacks", "baselines", "dataset", "seeds")
    for key in fixed:
        if merged[key] != settings[key]:
            raise SpecError(f"--set {key}: a trial is one combination; use --attack, --defense, --dataset and --seed")
    spec = without_sweep(make_spec(merged))
    if len(spec.defense_seeds) > 1 or spec.defenses:
        key = "defenses" if spec.defenses else "defense_seeds"
        raise SpecError(f"--set {key}: a trial is one run of one setting; a study has several (superft run)")
    if spec.keep != "none":
        raise SpecError("--set keep: a study keeps models, a single trial does not; see superft export")
    plan, _, _ = prepare(spec)
    return run_job(spec, plan.baselines[0], pick_device(device), spec.resources.cpus_per_trial)


def run_job(
    spec: StudySpec,
    job: Job,
    device: torch.device,
    threads: int,
    keep: Callable[[Classifier], Mapping[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """The row of one job, as a study of this spec with so many ``threads`` would run it (SpecError: no such store).

    Args:
        keep: as in `run_trial`.
    """
    store = open_store(spec.store)
    check_store(store)
    bench = Workbench(store, device, threads=threads)
    result = bench.run(job.cell, job.settings, job.curve, job.aftermath, keep)
    stated_for = published_for(job.cell.defense, job.cell.data.name) if job.published else None
    return result.row(
        study=spec.name,
        trial=job.trial,
        role=job.role,
        published=job.published,
        published_for=stated_for,
        schema=SCHEMA,
    )


def describe(row: Mapping[str, Any]) -> str:
    """The row for people: rates before and after, what a detector found, and what it took."""
    lines = [
        f"{row['attack']} + {row['defense']} on {row['dataset']}, {row['model']}, seed {row['seed']}: {row['status']}"
    ]
    if row["error"]:
        lines.append(f"  {row['error']}")
    for name, label in (
        ("asr", "attack success rate"),
        ("clean_accuracy", "clean accuracy"),
        ("robust_accuracy", "robust accuracy"),
    ):
        lines.append(f"  {label:<20} {row[f'{name}_before']:.4f} -> {row[name]:.4f}")
    if row.get("moved") is False and row["status"] == "ok":
        lines.append("  it hardly moved: the training loss never rose, and the weights stayed near where they were")
    if found := {heading: text for heading, text in detected(to_frame([row])).items() if text}:
        lines.append(f"  {'detector':<20} {', '.join(f'{heading} {text}' for heading, text in found.items())}")
    if row["flags"]:
        lines.append(f"  {'flags':<20} {', '.join(row['flags'])}")
    if "victim_trained_otherwise" in row["flags"]:
        lines.append(f"  {'victim trained on':<20} {row['victim_trained_on']}: trained like this trial it may differ")
    lines += [f"  {said}" for said in in_words(row)]
    lines.append(f"  {row['steps']} steps in {row['seconds_repair']:.1f} s on {row['device']}")
    return "\n".join(lines)


def _qualify(assignment: str, defense: str, own: set[str]) -> str:
    """``lr_max1=0.3`` means the defense's setting, unless the spec has a key of that name."""
    key = assignment.partition("=")[0]
    if key in own and key not in StudySpec.model_fields:
        return f"defense.{defense}.{assignment}"
    return assignment


def pick_device(name: str | None) -> torch.device:
    """The device called ``name``, default CUDA where there is one; SpecError where it cannot be used."""
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        device = numbered(device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
