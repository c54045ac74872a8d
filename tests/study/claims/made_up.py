"""Rows of runs at the paper's own scale, for tests of how claims are judged. Nothing here was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.claims.judge import Judgement, judge
from study.claims.paper import Paper, Reading, read_paper, read_readings
from study.claims.runs import read_runs
from study.record.curves import KEY
from study.spec.load import make_spec
from study.spec.schema import StudySpec
from tests.study.rows import make_row

PAPER: Paper = read_paper()
READINGS: dict[str, Reading] = read_readings(PAPER)
CONDITIONS: dict[str, Any] = {
    "dataset": "cifar10",
    "train_size": 50_000,
    "model": "preact_resnet18",
    "width": 64,
    "image_size": 32,
    "scenario": "standalone",
    "clean_fraction": 1.0,
    "clean_source": "overlap",
    "poison_rate": 0.1,
    "n_clean": 10_000,
    "n_triggered": 9_000,
}


def spec_of(recipe: str = "sha", **keys: Any) -> StudySpec:
    """A study whose victims were trained by this recipe."""
    victim = {"recipe": recipe, **keys.pop("victim", {})}
    return make_spec({"dataset": "cifar10", "attacks": ["blended"], "baselines": ["none"], "victim": victim, **keys})


def rows_of(
    reading: str = "P1",
    *,
    asr: Sequence[float] = (0.03, 0.03, 0.03),
    changes: dict[str, Any] | None = None,
    attack: str = "blended",
    **columns: Any,
) -> list[dict[str, Any]]:
    """One row for each attack seed, under a reading of the schedule.

    Args:
        asr: of the attack seeds 0, 1, ...
        changes: settings over those of the reading.
        columns: of all rows.
    """
    one = READINGS[reading]
    return [
        make_row(
            f"{attack}/{reading}/baseline",
            **{
                **CONDITIONS,
                "defense": one.method,
                "defense_label": reading,
                "resolved_settings": json.dumps(one.settings(changes or {})),
                "seed": seed,
                "victim": f"{attack} on {columns.get('dataset', 'cifar10')}, seed {seed}",
                "asr": value,
                **columns,
            },
        )
        for seed, value in enumerate(asr)
    ]


def point_of(passes: float, asr: float, *, clean_accuracy: float = 0.9, kept: bool = True) -> dict[str, Any]:
    """A point of a curve."""
    return {"step": 1, "passes": passes, "kept": kept, "asr": asr, "clean_accuracy": clean_accuracy}


def curves_of(rows: Sequence[dict[str, Any]], *points: dict[str, Any]) -> pd.DataFrame:
    """The same curve for each of these rows, as `study.record.curves.read_curves` gives them."""
    return pd.DataFrame([{**{name: row[name] for name in KEY}, **point} for row in rows for point in points])


def judged(claim: str, *rows: dict[str, Any], spec: StudySpec | None = None, **more: Any) -> Judgement:
    """A claim beside the rows of one study."""
    runs = read_runs(spec or spec_of(), rows, **more)
    return next(one for one in judge(PAPER, READINGS, runs) if one.claim.id == claim)
