"""A running study, watched from outside: `superft show`, tracking tools, optuna-dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.network import free_ports
from tests.study.commands import invoke
from tests.study.processes import new_place, on_one_core, rows_of, wait_for


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A real study that logs to two tools, one of which does not answer; shown again and again while it runs."""
    with new_place(tmp_path_factory.mktemp("watching"), on_one_core()) as place, pytest.MonkeyPatch.context() as patch:
        (port,) = free_ports(1)
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        spec = place.spec("watched", search={"trials": 8, "startup_trials": 2}, tracking=["mlflow", "tensorboard"])
        directory = place.folder / "runs" / "watched"
        running = place.start("run", spec, "--out", directory)
        wait_for((directory / "study.yaml").exists, 180, running.stderr.read_text)
        shown = []
        while running.process.poll() is None:
            shown.append(invoke("show", directory))
            time.sleep(0.5)  # leaves the processor to the study
        yield SimpleNamespace(place=place, directory=directory, shown=shown, ended=running.end())


def test_show_works_at_any_moment_of_a_running_study(watched: SimpleNamespace) -> None:
    assert watched.ended.code == 0, watched.ended.stderr
    assert {result.exit_code for result in watched.shown} == {0}
    counts = [int(re.search(r": (\d+) of 9 trials done", result.stdout)[1]) for result in watched.shown]  # type: ignore[index]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2, "it was seen to move"
    assert not any("note:" in result.stdout for result in watched.shown), "a row is there whole or not at all"


def test_a_tool_that_does_not_answer_is_warned_of_once_and_the_study_ends_as_ever(watched: SimpleNamespace) -> None:
    pytest.importorskip("mlflow")
    lines = [line for line in watched.ended.stderr.splitlines() if "mlflow failed" in line]
    assert len(lines) == 1
    assert "the study goes on" in lines[0]
    assert [row["status"] for row in rows_of(watched.directory)] == ["ok"] * 9
    assert (watched.directory / "report.html").exists()


def test_the_tool_that_answers_has_every_row(watched: SimpleNamespace) -> None:
    marks = json.loads((watched.directory / "tracking.json").read_text())
    assert marks["tensorboard"]["rows"] == 9
    assert marks["tensorboard"]["ended"]
    assert "mlflow" not in marks


def test_optuna_dashboard_lists_the_search_with_named_objectives(watched: SimpleNamespace) -> None:
    pytest.importorskip("optuna_dashboard")
    with dashboard(watched.directory / "optuna.journal") as address:
        (study,) = ask(f"{address}/api/studies")["study_summaries"]
        assert study["study_name"] == "watched/badnets/super_ft"
        assert study["directions"] == ["minimize", "maximize"]
        detail = ask(f"{address}/api/studies/{study['study_id']}")
    assert detail["objective_names"] == ["asr", "clean_accuracy"]
    assert len(detail["trials"]) == 8


@contextlib.contextmanager
def dashboard(journal: Path) -> Iterator[str]:
    """A running optuna-dashboard on a free port of loopback."""
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), str(journal)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ),
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(address), 120)
        assert process.poll() is None, process.stdout and process.stdout.read()
        yield address
    finally:
        process.kill()
        process.wait()


def answers(address: str) -> bool:
    try:
        return bool(ask(f"{address}/api/meta"))
    except (urllib.error.URLError, ConnectionError):
        return False


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)
