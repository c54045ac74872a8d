"""What a trigger looks like: clean, triggered and the difference (x10) of a row of test images, as one PNG."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from study.ledger import write_atomically
from study.plan import Plan, check_plan, load_data, make_plan
from study.settings import SpecError, merge_assignments
from study.single import pick_device
from study.spec import StudySpec, make_spec
from trainables.attacks.base import ATTACKS, Attack, Trigger, stamp
from trainables.data import Dataset
from trainables.remote import Place
from trainables.remote_store import open_store
from trainables.store import DamagedArtifactError, Store
from trainables.trial import Cell, Workbench

DIFFERENCE_FACTOR = 10
TRIGGER_PREFIX = "trigger_"  # of the pictures in a study's figures
ROWS = ("clean", "triggered", f"difference\n(x{DIFFERENCE_FACTOR})")


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
        "store": None if store is None else str(store),
    }
    own = {field.name for field in dataclasses.fields(cls)}
    merged = merge_assignments(settings, [_qualify(item, attack, own) for item in assignments])
    for key in ("attacks", "baselines", "dataset", "seeds"):
        if merged[key] != settings[key]:
            raise SpecError(f"--set {key}: a picture is of one attack; name it, and use --dataset and --seed")
    spec = make_spec(merged)
    plan = make_plan(spec)
    data, upstream = load_data(spec)
    check_plan(plan, data, upstream)
    victim_spec = plan.cells[0].victim
    instance = victim_spec.make_attack()
    trigger = instance.preview_trigger(data.image_size, seed)
    if trigger is None:
        bench = Workbench(open_store(spec.store), pick_device(device))
        trigger = bench.victim(plan.cells[0]).trigger
    out.parent.mkdir(parents=True, exist_ok=True)
    trigger_figure(instance, trigger, data, count=count).savefig(out, dpi=100)
    return out


def write_trigger_figures(plan: Plan, data: Dataset, store: Store, folder: Path) -> list[Path]:
    """Draw ``trigger_ATTACK.png`` of every attack of a study whose picture is not there yet; nothing is trained.

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
        trigger = attack.preview_trigger(data.image_size, cell.seed)
        if trigger is None:
            bench = Workbench(store, torch.device("cpu"))
            if _is_whole(bench.store, bench.victim_name(cell)):
                trigger = bench.victim(cell).trigger
        if trigger is not None:
            content = io.BytesIO()
            trigger_figure(attack, trigger, data).savefig(content, format="png", dpi=100)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(out, content.getvalue())
            written.append(out)
    return written


def _is_whole(store: Store, name: str) -> bool:
    try:
        return store.load(name) is not None
    except DamagedArtifactError:  # the next study that needs it trains it again
        return False


def trigger_figure(attack: Attack, trigger: Trigger, data: Dataset, *, count: int = 8) -> Figure:
    """The picture: three rows of ``count`` test images, of as many classes as there are."""
    indices = example_indices(data, attack, count)
    clean = data.test.images[indices]
    triggered = stamp(trigger, clean)
    labels = data.test.labels[indices]
    targets = attack.targets(labels, data.num_classes)
    side = 1.1
    figure = Figure(figsize=(0.9 + side * len(indices), 0.5 + side * len(ROWS)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ROWS), len(indices), squeeze=False)
    for row, (name, images) in enumerate(zip(ROWS, (clean, triggered, difference(clean, triggered)), strict=True)):
        for column, image in enumerate(images):
            panel = axes[row][column]
            panel.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(name, fontsize=9)
    for column, (label, target) in enumerate(zip(labels.tolist(), targets.tolist(), strict=True)):
        axes[0][column].set_title(_short(data.classes[label]), fontsize=8)
        axes[-1][column].set_xlabel("→ " + _short(data.classes[target]), fontsize=8)
    moved = (triggered.int() - clean.int()).abs()
    figure.suptitle(
        f"{attack.name} on {data.name}: mean change {float(moved.double().mean()):.1f}, largest {int(moved.max())} "
        "of 255",
        fontsize=9,
    )
    return figure


def difference(clean: Tensor, triggered: Tensor) -> Tensor:
    """Absolute change of uint8 images, times ten, cut at white; uint8."""
    return ((triggered.int() - clean.int()).abs() * DIFFERENCE_FACTOR).clamp(max=255).to(torch.uint8)


def example_indices(data: Dataset, attack: Attack, count: int) -> Tensor:
    """Test images whose label the attack would change: the first of each class, then the second of each, ..."""
    labels = data.test.labels
    wanted = (attack.targets(labels, data.num_classes) != labels).nonzero()[:, 0]
    seen = dict.fromkeys(range(data.num_classes), 0)
    ranks = []
    for label in labels[wanted].tolist():
        ranks.append((seen[label], label))
        seen[label] += 1
    order = sorted(range(len(wanted)), key=ranks.__getitem__)
    return wanted[torch.tensor(order[: max(1, count)], dtype=torch.int64)]


def _qualify(assignment: str, attack: str, own: set[str]) -> str:
    """``alpha=0.3`` means the attack's setting, unless the spec has a key of that name."""
    key = assignment.partition("=")[0]
    return f"attack.{attack}.{assignment}" if key in own and key not in StudySpec.model_fields else assignment


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
