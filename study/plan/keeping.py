"""What the models that a study keeps take of its store: bytes of a model times the trials that are left."""

from __future__ import annotations

from collections.abc import Mapping

from study.plan.data import Data, data_of
from study.plan.jobs import Plan
from study.record.words import in_bytes
from trainables.job import Cell
from trainables.models.build import build_model

# Of a file's header, for each tensor: type, shape and place, beside its name.
HEADER_BYTES = 70


def kept_lines(plan: Plan, data: Data, left: Mapping[str, int] | None = None) -> list[str]:
    """One line on the models that are kept; none where none is.

    Args:
        plan, data: of the study; an outline of the data is enough.
        left: trials left by label; None: all of them.
    """
    what = plan.spec.keep
    if what == "none":
        return []
    left = plan.jobs_by_label() if left is None else left
    sizes: dict[tuple[str, int | None, int], int] = {}
    models, total = 0, 0.0
    labels: dict[str, list[Cell]] = {}
    for job in plan.baselines if what == "all" else ():
        labels.setdefault(job.label, []).append(job.cell)
    for search in plan.searches:
        if what == "all" or not search.repeat:
            labels[search.label] = [*search.cells]
        if what == "all" and search.fresh:
            labels[search.confirm_label] = [*search.fresh]
    for label, cells in labels.items():
        models += left.get(label, 0)
        total += left.get(label, 0) * sum(_bytes_of(cell, data, sizes) for cell in cells) / len(cells)
    each = " or ".join(in_bytes(size) for size in sorted({*sizes.values()}))
    if what == "all":
        return [f"kept:      {models} models of {each}, {in_bytes(total)} in the store"]
    return [
        f"kept:      the models on the fronts, of {each}; until the study is finished all {models} of its searches, "
        f"{in_bytes(total)} in the store"
    ]


def _bytes_of(cell: Cell, data: Data, known: dict[tuple[str, int | None, int], int]) -> int:
    """Size of the file of a model of the cell, within a few bytes for each of its tensors."""
    dataset, victim = data_of(data, cell.data), cell.victim
    key = (victim.model, victim.width, dataset.num_classes)
    if key not in known:
        model = build_model(
            victim.model, num_classes=dataset.num_classes, width=victim.width, image_size=dataset.image_size
        )
        state = model.state_dict().items()
        known[key] = sum(value.numel() * value.element_size() + len(name) + HEADER_BYTES for name, value in state)
    return known[key]
