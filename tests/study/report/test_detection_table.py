"""The table of detectors: rates, ceilings and flagged classes, of one run and over seeds."""

from __future__ import annotations

from typing import Any

from study.record.columns import to_frame
from study.report.cells import detection_table
from study.results.fronts import fronts
from study.results.settings import aggregate
from tests.study.rows import make_row, point


def _detections(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    frame = to_frame(rows)
    table = detection_table(frame, aggregate(frame), fronts(frame))
    return {row["model"]: {key: text for key, text in row.items() if text and key != "model"} for row in table}


def test_detectors_are_judged_where_they_judged_samples() -> None:
    found = {"detection_removed": 0.15, "detection_tpr": 0.9, "detection_fpr": 0.05, "detection_precision": 0.6}
    found |= {"detection_auroc": 0.987, "detection_auprc": None, "detection_auroc_target": 0.5}
    found |= {"detection_removed_target": 0.15, "detection_ceiling_share": 1.0, "detection_ceiling_classes": 0.28}
    rows = [make_row("badnets/spectral/baseline", **found), make_row("badnets/ft/baseline")]
    assert _detections(rows) == {
        "spectral (baseline)": {
            "removed": "15.0 %",
            "TPR": "90.0 %",
            "FPR": "5.0 %",
            "precision": "60.0 %",
            "most TPR at this share": "100.0 %",
            "most TPR at these shares of the classes": "28.0 %",
            "removed of the target class": "15.0 %",
            "AUROC within the target class": "0.500",
            "AUROC over all classes": "0.987",
        }
    }


def test_flagged_classes_come_with_their_anomaly_indices() -> None:
    indices = {"note.anomaly_indices": [0.5, 3.24, 1.0]}
    flags = {"flagged_classes": [1], "target_flagged": False, "false_classes": 1}
    none = {"flagged_classes": [], "target_flagged": False, "false_classes": 0}
    rows = [
        make_row("badnets/nc/baseline", **indices, **flags),
        point(0, 0.1, 0.9, published=True, **none, **{"note.anomaly_indices": [0.5, 1.5, 1.0]}),
        point(1, 0.9, 0.5, flagged_classes=[0, 2], target_flagged=True, false_classes=1, **indices),
    ]
    table = _detections(rows)
    assert table["nc (baseline)"] == {
        "flagged classes": "1 (index 3.2)",
        "target found": "no",
        "false classes": "1",
    }
    assert table["super_ft, published setting; found: knee, max DER"]["flagged classes"] == "none (largest index 1.5)"
    assert table["super_ft, all 2 trials: least to most"] == {
        "flagged classes": "1 of 2 runs flag",
        "target found": "1 of 2",
        "false classes": "0 to 1",
    }


def test_detection_over_seeds_is_a_mean() -> None:
    rows = [
        make_row("badnets/ac/baseline", seed=seed, detection_tpr=tpr, flagged_classes=flags, target_flagged=bool(flags))
        for seed, (tpr, flags) in enumerate([(1.0, [0]), (0.5, [])])
    ]
    assert _detections(rows) == {
        "ac (baseline)": {"TPR": "75.0 %", "flagged classes": "1 of 2 runs flag", "target found": "1 of 2"}
    }
