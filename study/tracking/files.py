"""What a run keeps of its study beside the curves: the spec, the tables and the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from study.record.folder import REPORT_FILE, SPEC_FILE
from study.spec.schema import StudySpec, flatten
from study.spec.yaml_io import parse_yaml

FRONT_FILE = "front.csv"
KEPT = (SPEC_FILE, "trials.csv", FRONT_FILE, REPORT_FILE)
# Columns of the front's table that say what a point is; the file has them all.
FRONT_COLUMNS = ("attack", "defense_label", "trial", "asr_report", "clean_accuracy_report", "charged_epochs", "is_knee")


def parameters(spec: StudySpec) -> dict[str, str]:
    """The resolved spec as flat ``key: text``, without a password that it may hold."""
    return {key: str(value) for key, value in flatten(parse_yaml(spec.to_yaml(), "spec")).items()}


def kept_files(directory: Path) -> list[Path]:
    """Those of KEPT that are there."""
    return [directory / name for name in KEPT if (directory / name).is_file()]


def front_table(directory: Path) -> pd.DataFrame:
    """The front as the report last saw it; empty before."""
    path = directory / FRONT_FILE
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    return table.reindex(columns=list(FRONT_COLUMNS))
