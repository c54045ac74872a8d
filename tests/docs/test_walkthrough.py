"""The study that is walked through is the file beside the page, and the stand-in's halves are studies that were run."""

from __future__ import annotations

from pathlib import Path

from study.record.folder import stored_spec
from study.record.ledger import Ledger
from study.results.left import plan_in, trials_left
from study.spec.load import load_spec
from tests.docs.pages import ROOT, blocks

HALVES = [ROOT / "docs" / "walkthrough" / name for name in ("mine", "theirs")]


def test_the_spec_on_the_page_is_the_file_beside_it() -> None:
    (block,) = blocks("docs/walkthrough.md", "yaml")
    file = ROOT / "docs" / "five-by-eight.yaml"
    assert block == file.read_text(encoding="utf-8")
    spec = load_spec(str(file), [])
    assert (len(spec.attacks), len(spec.defenses), len(spec.seeds)) == (5, 8, 3)


def test_the_halves_of_the_stand_in_were_measured_and_are_whole() -> None:
    for half in HALVES:
        rows = Ledger.read(Path(half) / "trials.jsonl").rows()
        assert {row["status"] for row in rows} == {"ok"}
        assert all(row["device"] and row["versions"] and row["wall_seconds"] > 0 for row in rows)
        plan = plan_in(half, stored_spec(half), rows)
        assert not trials_left(plan, rows)
