"""What one trial found, and the row that it becomes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from trainables.evaluation.curve import Point
from trainables.evaluation.metrics import Evaluation, der
from trainables.job import Cell
from trainables.victims.victim import Victim

MEASURES = ("asr", "clean_accuracy", "robust_accuracy")
# Fields of a result that are no column of its row, but several or none.
SPREAD = ("cell", "settings", "metrics", "notes", "detection", "by_class", "curve", "aftermath", "kept")


@dataclass
class TrialResult:
    """What one trial found; `row` makes it one line of the ledger, whose columns `trainables.columns` describes.

    ``settings`` are those that were given (searched, published or fixed by a spec), ``resolved_settings`` all of them,
    defaults included, as JSON. ``plugins``: names and versions of the plug-ins that attack, defense, model and data
    come from; empty: all are ours. ``metrics`` are None only for a failed trial. ``detection`` holds the columns of
    `detection.detection_columns`, for defenses that detect. ``by_class``: rates per true class, as JSON lists.
    ``curve``: points along the repair where they were asked for, no part of the row.
    ``aftermath``: the columns of `aftermath.measure_aftermath`, where it was asked for. ``kept``: likewise, of a model
    that was to be kept (`storage.kept.keeper`).

    What the trial found ready made by an earlier trial (flag ``WHAT_reused``) costs nothing again; the work it once
    took is in ``reused_*_samples``, so that the cost of a setting alone is their sum. ``shared_work`` says what that
    was: names ``made``, and ``reused`` names with their samples.
    """

    cell: Cell
    settings: dict[str, Any]
    resolved_settings: str = "{}"
    status: str = "failed"
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    steps: int = 0
    batch: int | None = None
    forward_samples: int = 0
    backward_samples: int = 0
    input_backward_samples: int = 0
    reused_forward_samples: int = 0
    reused_backward_samples: int = 0
    reused_input_backward_samples: int = 0
    shared_work: str = ""
    eval_forward_samples: int = 0
    wall_seconds: float = 0.0
    seconds_setup: float = 0.0
    seconds_repair: float = 0.0
    seconds_evaluate: float = 0.0
    peak_memory_bytes: int = 0
    train_size: int = 0
    device: str = ""
    versions: str = ""
    target_label: int | None = None
    target_class: str | None = None
    image_size: int = 0
    flip: bool = False
    threads: int = 0
    precision: str = ""
    code: str = ""
    plugins: str = ""
    victim: str = ""
    victim_trained_on: str = ""
    started: str = ""
    collapsed: bool = False
    moved: bool | None = None
    loss_rise: float | None = None
    displacement: float | None = None
    displacement_share: float | None = None
    flags: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    detection: dict[str, Any] = field(default_factory=dict)
    by_class: dict[str, str] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    aftermath: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def row(self, **extra: Any) -> dict[str, Any]:
        """Flat and JSON-able; ``extra`` are columns that the caller knows (study, trial, role)."""
        row: dict[str, Any] = {**extra, **self.cell.columns()}
        for item in dataclasses.fields(self):
            if item.name not in SPREAD:
                row[item.name] = getattr(self, item.name)
        row.update(self.metrics)
        row.update(self.detection)
        row.update(self.by_class)
        row.update(self.aftermath)
        row.update(self.kept)
        row.update({f"param.{key}": value for key, value in self.settings.items()})
        row.update({f"note.{key}": value for key, value in self.notes.items()})
        return row


def rates(evaluation: Evaluation | None, victim: Victim) -> dict[str, float | int | None]:
    """The rates of all parts, after and before; the worst point where there is no evaluation."""
    before = victim.evaluation
    worst = {"asr": 1.0, "clean_accuracy": 0.0, "robust_accuracy": 0.0}
    found: dict[str, float | int | None] = {}
    for suffix, part in (("", "full"), ("_search", "search"), ("_report", "report")):
        for measure in MEASURES:
            found[measure + suffix] = (
                worst[measure] if evaluation is None else getattr(getattr(evaluation, part), measure)
            )
    for measure in MEASURES:
        found[f"{measure}_before"] = getattr(before.full, measure)
        found[f"{measure}_before_report"] = getattr(before.report, measure)
    after = worst if evaluation is None else vars(evaluation.full)
    found["der"] = der(before.full.asr, after["asr"], before.full.clean_accuracy, after["clean_accuracy"])
    found["asr_max"] = 1.0 if evaluation is None else evaluation.asr_max
    found["asr_max_before"], found["asr_including_target_before"] = before.asr_max, victim.asr_including_target
    found["asr_base"] = victim.asr_base
    found["false_target_rate"] = None if evaluation is None else evaluation.false_target_rate
    found["n_clean"], found["n_triggered"] = before.full.n_clean, before.full.n_triggered
    found["n_clean_report"], found["n_triggered_report"] = before.report.n_clean, before.report.n_triggered
    return found


def as_json_shares(shares: tuple[float | None, ...]) -> str:
    return json.dumps([None if share is None else round(share, 4) for share in shares])
