"""The attacker's class is named where the ledger or the spec can name it."""

from __future__ import annotations

from typing import Any

import pytest

from study.record.columns import to_frame
from study.report.cells import detected
from study.report.targets import target_text
from tests.study.rows import make_row


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, ""),
        ({"target_label": 0}, "0"),
        ({"target_class": "airplane"}, "airplane"),
        ({"target_label": 0, "target_class": "airplane"}, "0 (airplane)"),
        ({"target_class": 3, "target_class_name": "cat"}, "3 (cat)"),
    ],
)
def test_number_and_name_as_far_as_rows_know_them(columns: dict[str, Any], text: str) -> None:
    assert target_text(to_frame([make_row("badnets/ft/baseline", **columns)])) == text


def test_the_spec_fills_in_what_old_ledgers_lack() -> None:
    frame = to_frame([make_row("badnets/ft/baseline")])
    assert target_text(frame, {"attack": {"badnets": {"target_label": 4}}}) == "4"
    assert target_text(frame, {"attack": {"badnets": {"target_label": "deer"}}}) == "deer"
    assert target_text(frame, {"attack": {"blended": {"target_label": 4}}}) == ""


def test_several_targets_have_no_one_name() -> None:
    rows = [make_row("badnets/ft/baseline", seed=seed, target_label=seed) for seed in (0, 1)]
    assert target_text(to_frame(rows)) == ""


def test_a_flagged_class_that_is_the_attackers_carries_its_name() -> None:
    flags = {"flagged_classes": [0, 2], "target_label": 0, "target_class": "airplane"}
    rows = to_frame([make_row("badnets/nc/baseline", **flags, **{"note.anomaly_indices": [3.2, 0.1, 2.5]})])
    assert detected(rows)["flagged classes"] == "0 (airplane; index 3.2), 2 (index 2.5)"
