"""What a running study tells those who look on, in its folder and at Ray's exporter; nothing depends on it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from study.plan.slots import Node, Room
from study.record.folder import Folder
from study.record.now import NOW_FILE, SILENT_SECONDS, read_now, write_now
from study.record.stopped import Trouble
from study.run import live as live_module
from study.run.dispatcher import Dispatcher
from study.run.live import Live
from study.run.progress import Progress
from study.watch.state import state_of
from study.watch.words import overview
from tests.study.processes import GATED, PATIENCE, new_place, rows_of, wait_for
from tests.study.tiny import made_up_row, make_driver, tiny_spec
from trainables.job import Row


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Live, Dispatcher, Path]:
    """A made-up study on two nodes, without Ray."""
    spec = tiny_spec("search.trials=8")
    (tmp_path / "study.yaml").write_text(spec.to_yaml())
    driver = make_driver(spec, tmp_path / "trials.jsonl", InMemoryStorage())
    progress = Progress(driver, open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the test
    room = Room([Node("a" * 56, 2, 1, "A100"), Node("b" * 56, 2, 1, "A100")], 1)
    shares = dict.fromkeys(driver.plan.jobs_by_label(), 0.5)
    return Live(driver, progress, Folder(tmp_path)), Dispatcher(driver, progress, room, shares, Trouble("it")), tmp_path


def test_nodes_slots_cards_and_trials_are_told_as_they_are(watched: tuple[Live, Dispatcher, Path]) -> None:
    live, dispatcher, folder = watched
    live.phase("victims", dispatcher.room.nodes, victims=2)
    assert live.look().slots is None
    live.trials(dispatcher)
    jobs = [dispatcher.start(name) for name in "xyz"]
    assert jobs[0] is not None
    row = made_up_row(jobs[0][0], dispatcher.driver.plan, node="a" * 8)
    dispatcher.report("x", Row(json.dumps(row), None))
    now = live.look()
    assert (now.running, now.slots, now.gpus_busy, now.gpus, now.left) == (2, 4, 1.0, 2, 8)
    write_now(folder, now)
    assert read_now(folder) == now
    said = overview(folder, called="here", now=now.seen)
    assert "running: trials (process" in said
    assert "slots: 2 of 4 busy; 1 of 2 GPUs given to them" in said
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith(("aaa", "bbb"))}
    running = {name: int(cells[3]) for name, cells in table.items()}
    assert table["a" * 8][-1] == "1", "the trial that ended there"
    assert sum(running.values()) == 2
    state = state_of(folder, called="here", now=now.seen).as_json()
    assert state["slots"] == {"busy": 2, "total": 4}
    assert state["gpus"] == {"busy": 1.0, "total": 2}
    assert (state["victims_needed"], state["state"], state["phase"]) == (2, "running", "trials")


def test_a_driver_that_says_nothing_any_more_is_called_silent(watched: tuple[Live, Dispatcher, Path]) -> None:
    live, dispatcher, folder = watched
    live.trials(dispatcher)
    now = live.look()
    write_now(folder, now)
    later = now.seen + SILENT_SECONDS + 1
    assert state_of(folder, called="here", now=later).state == "silent"
    said = overview(folder, called="here", now=later)
    assert f"silent: process {os.getpid()} on" in said
    assert "last seen 2 min ago; if it is gone, the same command continues the study" in said
    assert "slots:" not in said


def test_the_end_is_told_whatever_it_was(watched: tuple[Live, Dispatcher, Path]) -> None:
    live, _, folder = watched
    with pytest.raises(OSError, match="full"), live:
        raise OSError("full")
    now = read_now(folder)
    assert now is not None
    assert (now.phase, now.outcome) == ("ended", "failed")
    assert state_of(folder, called="here").state == "stopped"


def test_a_file_that_cannot_be_written_or_read_harms_nobody(
    watched: tuple[Live, Dispatcher, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, _, folder = watched
    beats = []

    def full(directory: Path, now: Any) -> None:
        beats.append(now)
        raise OSError("no space left on device")

    monkeypatch.setattr(live_module, "write_now", full)
    monkeypatch.setattr(live_module, "BEAT_SECONDS", 0.01)
    with live:
        wait_for(lambda: len(beats) > 3, 30)
    for content in ("{", "[]", '{"nodes": []}', '{"host": "x", "nodes": [{}], "more": 1}'):
        (folder / NOW_FILE).write_text(content)
        assert read_now(folder) is None
        assert "0 of 9 trials done" in overview(folder, called="here")


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_a_real_study_is_seen_at_rays_exporter_and_in_its_folder(tmp_path: Path) -> None:
    """Two of its trials end, the others wait: it runs for as long as it is looked at."""
    with new_place(tmp_path) as place:
        spec = place.spec("seen", **GATED, search={"trials": 6, "startup_trials": 2})
        out = tmp_path / "study"
        running = place.start("run", spec, "--out", out, plug_in=True)

        def runs() -> bool:
            assert running.process.poll() is None, running.stderr.read_text()
            return True

        def shown() -> dict[str, Any]:
            return dict(json.loads(place.run("show", out, "--json", plug_in=True).stdout))

        wait_for(lambda: runs() and bool(rows_of(out)), PATIENCE)
        state = shown()
        assert state["state"] == "running"
        assert state["driver"]["pid"] == running.process.pid
        assert state["nodes"][0]["alive"]
        port = exporter(place.temporary)
        text = ""

        def exported() -> bool:
            nonlocal text
            runs()
            with contextlib.suppress(OSError):  # it does not answer yet
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
            # The last to appear: a search has one only once a setting of its own has ended.
            return "ray_superft_hypervolume{" in text and 'state="ok"' in text

        wait_for(exported, 300, lambda: "\n".join(line for line in text.splitlines() if "superft" in line), pause=1)
        for name in (
            "trials",
            "slots",
            "gpus",
            "victims",
            "seconds_left",
            "trial_seconds_bucket",
            "phase_seconds_total",
        ):
            assert f"ray_superft_{name}{{" in text, name
        assert 'study="seen"' in text
        running.process.send_signal(signal.SIGINT)
        ended = running.end(PATIENCE)
        assert ended.code == 130
        assert shown()["state"] == "stopped"


def exporter(temporary: Path) -> int:
    """Port of the metrics of the only node below a folder, from the file where Ray keeps it."""
    found: list[Path] = []

    def there() -> bool:
        found.extend(temporary.rglob("metrics_export_port_*"))
        return bool(found)

    wait_for(there, 60)
    return int(found[0].read_text())
