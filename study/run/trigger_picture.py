"""Pictures of triggers: make the trigger, or take it from its victim, and draw it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from study.plan.data import Data, data_of, one_of
from study.plan.jobs import Plan, prepare
from study.record.files import write_atomically
from study.report.figures.trigger import TRIGGER_PREFIX, trigger_figure
from study.run.one_trial import pick_device
from study.spec.load import make_spec, without_sweep
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, merge_assignments
from trainables.attacks.base import ATTACKS
from trainables.job import Cell
from trainables.plugins.load import load, load_installed
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store
from trainables.storage.store import DamagedArtifactError, Store
from trainables.workbench import Workbench


def write_trigger_picture(
    *,
    attack: str,
    dataset: str,
    out: Path,
    seed: int = 0,
    count: int = 8,
    assignments: Sequence[str] = (),
    store: Place | None = None,
    download: bool = False,
    plugins: Sequence[str] = (),
    device: str | None = None,
) -> Path:
    """Draw the trigger of ``attack`` on test images of ``dataset``; a trigger that is learned needs its victim.

    Args:
        out: a file that ends in .png; its folder is made.
        count: images, at least 1.
        assignments: ``key=value`` over the spec's defaults; a bare key is a setting of the attack.

    Raises:
        SpecError, SettingError, DataError: bad input, before any work.
    """
    if out.suffix.lower() != ".png":
        raise SpecError(f"--out must be a file that ends in .png, got {out}")
    load_installed()
    load(plugins)
    cls = ATTACKS.get(attack)
    if not cls.implants_backdoor:
        raise SpecError(f"attack {attack!r} has no trigger to draw")
    settings: dict[str, Any] = {
        "name": "trigger",
        "attacks": [attack],
        "baselines": ["none"],
        "dataset": dataset,
        "seeds": [seed],
        "download": download,
        "plugins": list(plugins),
        "store": None if store is None else str(store),
    }
    own = {field.name for field in dataclasses.fields(cls)}
    merged = merge_assignments(settings, [_qualify(item, attack, own) for item in assignments])
    for key in ("attacks", "baselines", "dataset", "seeds"):
        if merged[key] != settings[key]:
            raise SpecError(f"--set {key}: a picture is of one attack; name it, and use --dataset and --seed")
    spec = without_sweep(make_spec(merged))
    plan, found, _ = prepare(spec)
    data = one_of(found)
    victim_spec = plan.cells[0].victim
    instance = victim_spec.make_attack()
    trigger = instance.preview_trigger(data.image_size, seed)
    if trigger is None:
        bench = Workbench(open_store(spec.store), pick_device(device), threads=spec.resources.cpus_per_trial)
        trigger = bench.victim(plan.cells[0]).trigger
    out.parent.mkdir(parents=True, exist_ok=True)
    trigger_figure(instance, trigger, data, count=count).savefig(out, dpi=100)
    return out


def write_trigger_figures(plan: Plan, data: Data, store: Store, folder: Path) -> list[Path]:
    """Draw ``trigger_ATTACK.png`` of every attack of a study whose picture is not there yet; nothing is trained.

    Of a sweep, that is the trigger of the first combination.

    A trigger that is learned is drawn from its victim (the first seed's), if that is in ``store`` and whole.

    Returns:
        The pictures that were written.
    """
    written = []
    first: dict[str, Cell] = {}
    for cell in plan.cells:
        if ATTACKS.get(cell.victim.attack).implants_backdoor and not cell.control:
            first.setdefault(cell.victim.attack, cell)
    for name, cell in first.items():
        out = folder / f"{TRIGGER_PREFIX}{name}.png"
        if out.exists():
            continue
        attack = cell.victim.make_attack()
        if not attack.trigger_applies:
            continue  # nobody can put it on the pictures' images
        dataset = data_of(data, cell.data)
        trigger = attack.preview_trigger(dataset.image_size, cell.seed)
        if trigger is None:
            bench = Workbench(store, torch.device("cpu"))
            if _is_whole(bench.store, bench.victim_name(cell)):
                trigger = bench.victim(cell).trigger
        if trigger is not None:
            content = io.BytesIO()
            trigger_figure(attack, trigger, dataset).savefig(content, format="png", dpi=100)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(out, content.getvalue())
            written.append(out)
    return written


def _is_whole(store: Store, name: str) -> bool:
    try:
        return store.load(name) is not None
    except DamagedArtifactError:  # the next study that needs it trains it again
        return False


def _qualify(assignment: str, attack: str, own: set[str]) -> str:
    """``alpha=0.3`` means the attack's setting, unless the spec has a key of that name."""
    key = assignment.partition("=")[0]
    return f"attack.{attack}.{assignment}" if key in own and key not in StudySpec.model_fields else assignment
