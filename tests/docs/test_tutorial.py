"""The tutorial's commands work in the order in which they are told, on a smaller model so that it takes a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, superft_commands

SMALLER = ("width=2", "victim.epochs=3", "image_size=8", "search.startup_trials=2")


@pytest.mark.slow
def test_the_tutorial_leads_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(blocks("docs/tutorial.md", "yaml")[0])
    for words in superft_commands("docs/tutorial.md"):
        if "published" in words:  # photographs
            continue
        if words[0] in ("run", "plan", "trial"):
            words += [word for key in SMALLER for word in ("--set", key)]
        if words[0] == "run":
            words += ["--set", "defense.super_ft.cycles1=0.05", "--set", "defense.super_ft.cycles2=0.05"]
        ran = subprocess.run(
            [sys.executable, "-m", "study.cli", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "SUPERFT_STORE": str(tmp_path / "store")},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ran.returncode == 0, f"superft {' '.join(words)}: {ran.stderr}"
    assert (tmp_path / "badnets.png").is_file()
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    rows = (tmp_path / "runs" / "first" / "trials.jsonl").read_text().splitlines()
    assert len(rows) == 3 + 12  # baselines, and the search that was made longer
