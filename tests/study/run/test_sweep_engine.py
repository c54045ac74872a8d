"""A sweep with a curve on real Ray: killed in the middle and continued, it has every row and every curve once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from study.record.curves import read_curves
from tests.study.processes import new_place, on_one_core, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = [pytest.mark.timeout(500), pytest.mark.cluster]

CHANGES = {
    "defenses": [],
    "baselines": ["none", "ft", "super_ft"],
    "defense": {"ft": {"steps": 40, "batch_size": 16}, "super_ft": {"iterations": 20, "batch_size": 16}},
    "search": {},
    "victim": {**TINY["victim"], "require_implanted": "run"},  # one of 12 pixels may hold no backdoor by our rule
    "sweep": {"clean_fraction": [0.1, 0.3], "image_size": [8, 12]},
    "curve": {"every": 10},
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with new_place(tmp_path_factory.mktemp("sweep"), on_one_core()) as place:
        spec = place.spec("swept", **CHANGES)
        directory = place.folder / "runs" / "swept"
        first = place.start("run", spec, "--out", directory)
        wait_for(lambda: len(rows_of(directory)) >= 3, 240, lambda: first.stderr.read_text())
        first.process.send_signal(signal.SIGKILL)
        first.end()
        place.wait_until_killed()
        before = rows_of(directory)
        second = place.run("run", spec, "--out", directory, timeout=400)
        yield SimpleNamespace(place=place, spec=spec, directory=directory, before=before, second=second)


def test_a_killed_sweep_ends_with_every_row_once(killed: SimpleNamespace) -> None:
    assert killed.second.code == 0, killed.second.stderr
    rows = rows_of(killed.directory)
    assert rows[: len(killed.before)] == killed.before
    assert len(rows) == len({row["trial"] for row in rows}) == 4 * 3
    assert {row["combination"] for row in rows} == {
        f"clean_fraction-{fraction}--image_size-{size}" for fraction in (0.1, 0.3) for size in (8, 12)
    }
    assert {(row["clean_fraction"], row["image_size"]) for row in rows} == {(f, s) for f in (0.1, 0.3) for s in (8, 12)}
    assert {row["status"] for row in rows} <= {"ok", "backdoor_not_implanted"}


def test_combinations_share_the_victims_that_are_the_same(killed: SimpleNamespace) -> None:
    victims = {(row["image_size"], row["victim"]) for row in rows_of(killed.directory)}
    assert len(victims) == 2


def test_every_row_has_its_curve_and_its_last_point_is_the_row(killed: SimpleNamespace) -> None:
    rows = rows_of(killed.directory)
    assert len(list((killed.directory / "curves").iterdir())) == len(rows)
    curves = read_curves(killed.directory, rows)
    for row in rows:
        own = curves[curves["trial"] == row["trial"]]
        assert own["step"].iloc[0] == 0
        assert own[["asr", "clean_accuracy"]].iloc[0].tolist() == [row["asr_before"], row["clean_accuracy_before"]]
        assert own[["asr", "clean_accuracy"]].iloc[-1].tolist() == [row["asr"], row["clean_accuracy"]]
        assert own["step"].tolist() == sorted({*range(0, row["steps"] + 1, 10), row["steps"]})


def test_a_finished_sweep_has_nothing_left_and_show_and_report_know_it(killed: SimpleNamespace) -> None:
    again = killed.place.here("run", killed.spec, "--out", killed.directory)
    assert again.code == 0
    assert "12 of 12" in again.stdout + again.stderr or "finished" in again.stdout + again.stderr
    shown = killed.place.here("show", killed.directory)
    assert "12 of 12 trials done" in shown.stdout
    page = (killed.directory / "report.html").read_text()
    assert "What the sweep shows: clean_fraction and image_size" in page
    assert (killed.directory / "figures" / "sweep_clean_fraction.png").exists()
    spec = json.loads(json.dumps(killed.before[0]["swept"]))
    assert set(json.loads(spec)) == {"clean_fraction", "image_size"}


def test_another_sweep_in_the_same_folder_is_refused_in_one_line(killed: SimpleNamespace) -> None:
    other = killed.place.spec("swept", **{**CHANGES, "sweep": {"clean_fraction": [0.1, 0.2], "image_size": [8, 12]}})
    refused = killed.place.here("run", other, "--out", killed.directory)
    assert refused.code == 2
    assert "sweep.clean_fraction: [0.1, 0.3] -> [0.1, 0.2]" in refused.stderr
    assert Path(killed.directory, "trials.jsonl").exists()
