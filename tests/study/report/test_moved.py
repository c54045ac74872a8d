"""A repair that hardly moved is called so wherever a setting's status or result stands."""

import json
from pathlib import Path

import pytest
import yaml

from study.record.columns import to_frame
from study.report.cells import status_text
from study.report.lead import outcome_text
from study.report.terminal import front_summary
from study.results.in_words import movement_text
from study.results.settings import aggregate
from study.run.one_trial import describe
from tests.study.rows import make_row
from tests.study.tiny import TINY


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ((False, False), "hardly moved"),
        ((False, True), "hardly moved in 1 of 2 runs"),
        ((True, True), ""),
        ((None, None), ""),  # rows of an earlier version
    ],
)
def test_a_setting_says_in_how_many_runs_it_moved_nothing(moved: tuple[bool | None, ...], words: str) -> None:
    rows = [make_row("badnets/ft/baseline", seed=seed, moved=value) for seed, value in enumerate(moved)]
    (setting,) = (one for _, one in aggregate(to_frame(rows)).iterrows())
    assert movement_text(setting) == words
    assert status_text(setting) == ", ".join(filter(None, ["ok", words]))
    assert (f"it {words}: ASR" in outcome_text(setting)) == bool(words)


def test_one_that_abstained_or_diverged_says_that_alone() -> None:
    for status in ("abstained", "diverged", "failed"):
        rows = [make_row("badnets/ft/baseline", status=status, moved=False)]
        assert movement_text(aggregate(to_frame(rows)).iloc[0]) == ""


def test_the_terminal_says_it_in_the_table_of_a_study_and_under_a_trial(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**TINY, "name": "made-up", "attacks": ["badnets"]}))
    rows = [make_row(moved=False, published=True), make_row("badnets/ft/baseline", moved=True)]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert front_summary(tmp_path).count("hardly moved") == 1
    shown = {**rows[0], "robust_accuracy_before": 0.0, "seconds_repair": 1.0}
    assert "it hardly moved" in describe(shown)
    assert "it hardly moved" not in describe({**shown, "moved": True})
