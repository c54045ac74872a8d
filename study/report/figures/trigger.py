"""Figure: what a trigger looks like: clean images, triggered ones, and the difference (x10)."""

from __future__ import annotations

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from trainables.attacks.base import Attack
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import Dataset

DIFFERENCE_FACTOR = 10
TRIGGER_PREFIX = "trigger_"  # of the pictures in a study's figures
ROWS = ("clean", "triggered", f"difference\n(x{DIFFERENCE_FACTOR})")


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


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
