"""One run per study in each tool, derived from the ledger; whatever becomes of a tool, the study goes on."""

from __future__ import annotations

import importlib
import importlib.util
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from study.record.files import write_atomically
from study.record.folder import Folder
from study.report.write import write_report
from study.results.scores import STATUSES
from study.run.driver import Driver
from study.run.engine import run_study
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from study.tracking import follower as follower_module
from study.tracking.follower import Follower
from study.tracking.marks import Marks
from study.tracking.points import STUDY, Point, Points
from study.tracking.trackers import tracking
from tests.study.processes import wait_for
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec

TWO = ("attacks=[badnets, blended]", "baselines=[none, super_ft]", "search.trials=5")
ROW = {"role": "search", "n_clean": 100, "n_triggered": 90, "n_clean_report": 50, "n_triggered_report": 45}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "PERIOD", 0.01)
    monkeypatch.setattr(follower_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def measure(job: Any, plan: Any) -> dict[str, Any]:
    """A made-up row with what a report and a curve need beside the rates."""
    costs = {"train_size": 1000, "forward_samples": 1500, "backward_samples": 750}
    return made_up_row(job, plan, started="2026-01-01T00:00:00+00:00", **costs)


def made_study(directory: Path, *assignments: str, finishes: int | None = None) -> Driver:
    """A study's folder with ``finishes`` of its trials done."""
    directory.mkdir(exist_ok=True)
    spec = tiny_spec(*assignments)
    write_atomically(directory / "study.yaml", spec.to_yaml().encode())
    driver = make_driver(spec, directory / "trials.jsonl", InMemoryStorage())
    run(driver, slots=1, finishes=finishes, measure=measure)
    return driver


def tracked(driver: Driver, directory: Path, say: Callable[[str], None]) -> AbstractContextManager[None]:
    return tracking(lambda: driver.plan, driver.ledger.rows, lambda: driver.finished, Folder(directory), say)


def follow(driver: Driver, directory: Path) -> list[str]:
    """All that the tools in the driver's spec have to do; the lines that they said."""
    said: list[str] = []
    with tracked(driver, directory, said.append):
        pass
    return said


# -- what is logged ----------------------------------------------------------------------------------------------------


def points_of(driver: Driver) -> list[Point]:
    points = Points(lambda: driver.plan)
    return [point for row in driver.ledger.rows() for point in points.add(row)]


def test_every_row_is_a_step_of_its_search_and_of_the_study(tmp_path: Path) -> None:
    driver = made_study(tmp_path, *TWO)
    points = points_of(driver)
    steps: dict[str, list[int]] = {}
    for point in points:
        steps.setdefault(point.group, []).append(point.step)
    assert steps == {
        "badnets/none/baseline": [1],
        "blended/none/baseline": [1],
        "badnets/super_ft/baseline": [1],
        "blended/super_ft/baseline": [1],
        "badnets/super_ft": [1, 2, 3, 4, 5],
        "blended/super_ft": [1, 2, 3, 4, 5],
        STUDY: list(range(1, 15)),
    }
    assert points[-1].values["trials"] == points[-1].values["ok"] == 14
    assert points[-1].values["charged_epochs"] == pytest.approx(14 * 1.0), (
        "1500 + 2 * 750 samples are one pass of 1000, E"
    )


@pytest.mark.parametrize("per", ["attack", "all"])
def test_curves_of_a_search_end_at_the_drivers_front(per: str, tmp_path: Path) -> None:
    driver = made_study(tmp_path, *TWO, f"search.per={per}")
    last = {point.group: point.values for point in points_of(driver)}
    for label, front in driver.fronts.items():
        assert last[label]["front_size"] == len(front)
        assert last[label]["hypervolume"] == pytest.approx(front.hypervolume)


def test_a_failed_row_has_a_status_and_no_rates(tmp_path: Path) -> None:
    driver = made_study(tmp_path, finishes=1)
    job = driver.next_job()
    assert job is not None
    driver.fail(job, "RuntimeError: boom")
    *_, failed, total = points_of(driver)
    assert STATUSES[int(failed.values["status"])] == "failed"
    assert "asr_search" not in failed.values
    assert total.values["failed"] == total.values["ok"] == 1


def test_points_are_the_same_whenever_they_are_made(tmp_path: Path) -> None:
    """So that a row that is sent twice is the same point, and no second one."""
    driver = made_study(tmp_path, *TWO)
    assert points_of(driver) == points_of(driver)


# -- following ---------------------------------------------------------------------------------------------------------


class Tool:
    """A tool that keeps what it gets, and goes wrong as told."""

    place = "here"

    def __init__(self, goes_wrong: Callable[[str], None] = lambda _: None) -> None:
        self.goes_wrong, self.opened, self.got, self.closed = (
            goes_wrong,
            list[str | None](),
            list[Point](),
            list[bool](),
        )

    def open(self, run: str | None) -> str:
        self.goes_wrong("open")
        self.opened.append(run)
        return run or "run-1"

    def link(self) -> str:
        return "tool://run-1"

    def log(self, points: Sequence[Point]) -> None:
        self.goes_wrong("log")
        self.got.extend(points)

    def close(self, finished: bool) -> None:
        self.goes_wrong("close")
        self.closed.append(finished)


def following(tool: Tool, driver: Driver, directory: Path) -> tuple[Follower, list[str]]:
    said: list[str] = []
    return Follower("tool", tool, lambda: driver.plan, driver.ledger.rows, Marks(Folder(directory)), said.append), said


def test_rows_are_sent_while_the_study_runs(tmp_path: Path) -> None:
    driver, tool = made_study(tmp_path, finishes=1), Tool()
    follower, said = following(tool, driver, tmp_path)
    follower.start()
    for number in (1, 2, 3):
        wait_for(lambda number=number: len(tool.got) == 2 * number, 60)
        run(driver, slots=1, finishes=1, measure=measure)
    follower.stop(True)
    follower.join()
    assert tool.got == points_of(driver)
    assert tool.closed == [True]
    assert said == ["tracking: tool://run-1"]


def test_a_tool_that_fails_is_said_once_and_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    failures = iter([True] * 3 + [False, True, True])

    def unsteady(_: str) -> None:
        if next(failures, False):
            raise ConnectionError("server gone")

    driver, tool = made_study(tmp_path, finishes=2), Tool(unsteady)
    follower, said = following(tool, driver, tmp_path)
    follower.start()
    wait_for(lambda: len(tool.got) == 4, 60)
    run(driver, slots=1, measure=measure)
    follower.stop(True)
    follower.join()
    assert tool.got == points_of(driver)
    assert [line for line in said if "WARNING" in line] == said[:1]
    assert "server gone" in said[0]


def test_a_continued_study_continues_its_run(tmp_path: Path) -> None:
    driver, first, second = made_study(tmp_path, finishes=2), Tool(), Tool()
    for tool, finished in ((first, False), (second, True)):
        follower, _ = following(tool, driver, tmp_path)
        follower.start()
        follower.stop(finished)
        follower.join()
        run(driver, slots=1, measure=measure)
    assert (first.opened, second.opened) == ([None], ["run-1"])
    assert first.got + second.got == points_of(driver)


def test_what_a_tool_that_is_down_missed_is_sent_by_the_next_run_of_the_study(tmp_path: Path) -> None:
    def down(_: str) -> None:
        raise ConnectionError("server gone")

    driver, later = made_study(tmp_path), Tool()
    for tool in (Tool(down), later):
        follower, _ = following(tool, driver, tmp_path)
        follower.start()
        follower.stop(True)
        follower.join()
    assert later.got == points_of(driver)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    driver, tools = made_study(tmp_path), [Tool(), Tool()]
    for tool in tools:
        follower, _ = following(tool, driver, tmp_path)
        follower.start()
        follower.stop(True)
        follower.join()
    assert tools[1].opened == tools[1].got == tools[1].closed == []


@pytest.mark.parametrize("sent", [4, 1])
def test_rows_that_run_again_are_sent_to_a_run_that_had_ended(tmp_path: Path, sent: int) -> None:
    """Also to one that had got only some of the rows when it ended: what it missed before is sent, too."""
    driver, first, second = made_study(tmp_path), Tool(), Tool()
    rows = driver.ledger.rows()[:4]
    followed = [{**row, "status": "failed"} if number in (0, 2) else row for number, row in enumerate(rows)]

    def follow(tool: Tool, seen: list[dict[str, Any]]) -> None:
        marks = Marks(Folder(tmp_path))
        follower = Follower("tool", tool, lambda: driver.plan, lambda: seen, marks, lambda _: None)
        follower.start()
        follower.stop(True)
        follower.join()

    follow(first, followed[:sent])
    Marks(Folder(tmp_path)).take_out([0, 2])
    again = [followed[1], followed[3], rows[0], rows[2]]
    follow(second, again)
    assert second.opened == ["run-1"]
    groups = [point.group for point in second.got if point.group != "study"]
    missed = [followed[number] for number in range(sent, 4) if number not in (0, 2)]
    assert groups == [row["search"] or row["trial"] for row in [*missed, rows[0], rows[2]]]
    assert second.closed == [True]


def test_another_server_gets_a_run_of_its_own_with_all_rows(tmp_path: Path) -> None:
    driver, elsewhere = made_study(tmp_path), Tool()
    elsewhere.place = "there"
    for tool in (Tool(), elsewhere):
        follower, _ = following(tool, driver, tmp_path)
        follower.start()
        follower.stop(True)
        follower.join()
    assert elsewhere.opened == [None]
    assert elsewhere.got == points_of(driver)


def test_a_tool_that_hangs_holds_up_neither_the_study_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.tracking.trackers.FINISH_SECONDS", 0.1)
    release = threading.Event()
    driver = made_study(tmp_path, finishes=0)
    follower, _ = following(Tool(lambda _: release.wait() and None), driver, tmp_path)
    monkeypatch.setattr("study.tracking.trackers._followers", lambda *_: [follower])
    with tracked(driver, tmp_path, print):
        run(driver, slots=1, measure=measure)
    assert driver.finished
    assert follower.is_alive()
    assert follower.daemon, "it ends with the process"
    release.set()
    follower.join()


@pytest.fixture
def wandb_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """W&B as a new process would find it, without the machine's own login; its helper process ends with the test."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    yield wandb
    wandb.teardown()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tool", "remedy"), [("mlflow", "superft[mlflow]"), ("tensorboard", "tensorboardX")])
def test_a_tool_that_is_not_installed_is_told_before_anything_is_written(
    tool: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match="is not installed") as error:
        run_study(tiny_spec(f"tracking=[{tool}]"), tmp_path / "out")
    assert remedy in str(error.value)
    assert not (tmp_path / "out").exists()


def test_mlflow_without_a_server_is_no_tool_for_a_study_at_a_uri() -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(SpecError, match="MLFLOW_TRACKING_URI"):
        run_study(tiny_spec("tracking=[mlflow]"), "s3://bucket/study")


def test_a_missing_login_is_told_before_anything_is_written(tmp_path: Path, wandb_: Any) -> None:
    with pytest.raises(SpecError, match="WANDB_API_KEY"):
        run_study(tiny_spec("tracking=[wandb]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- real tools, without a network -------------------------------------------------------------------------------------


def assert_same(curve: list[tuple[int, float]], driver: Driver, group: str, name: str) -> None:
    """Each step once, in order, with its value (float32 in some tools)."""
    expected = [(point.step, point.values[name]) for point in points_of(driver) if point.group == group]
    assert [step for step, _ in curve] == [step for step, _ in expected]
    assert [value for _, value in curve] == pytest.approx([value for _, value in expected], rel=1e-6)


CURVES = [("badnets/super_ft", "asr_search"), ("badnets/super_ft", "hypervolume"), (STUDY, "charged_epochs")]


def stopped_and_continued(directory: Path, tool: str) -> Driver:
    """A study that was logged in two parts, reported at its end."""
    driver = made_study(directory, f"tracking=[{tool}]", finishes=2)
    said = follow(driver, directory)
    assert [line for line in said if "WARNING" in line] == []
    run(driver, slots=1, measure=measure)
    write_report(directory)
    said = follow(driver, directory)
    assert [line for line in said if "WARNING" in line] == []
    return driver


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    driver = stopped_and_continued(tmp_path, "tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for group, name in CURVES:
        assert_same([(event.step, event.value) for event in events.Scalars(f"{group}/{name}")], driver, group, name)


def test_mlflow_holds_one_run_with_parameters_curves_and_report(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    driver = stopped_and_continued(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("superft")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((tmp_path / "tracking.json").read_text())["mlflow"]["run"]
    assert found.info.status == "FINISHED"
    assert found.data.params["search.trials"] == "4"
    assert found.data.params["defense.super_ft.batch_size"] == "16"
    for group, name in CURVES:
        history = client.get_metric_history(found.info.run_id, f"{group}/{name}")
        assert_same([(item.step, item.value) for item in history], driver, group, name)
    kept = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert kept == {"study.yaml", "trials.csv", "front.csv", "report.html"}


def test_wandb_holds_one_run_with_configuration_curves_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], wandb_: Any
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    importlib.import_module("study.tracking.wandb").check(tmp_path)
    driver = stopped_and_continued(tmp_path, "wandb")
    assert "wandb" not in capfd.readouterr().err
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    assert len(parts) == 2, "one part per session; wandb sync joins them by the id of the run"
    records = [record for part in parts for record in records_of(next(part.glob("*.wandb")))]
    runs = [record.run for record in records if record.HasField("run")]
    assert {item.run_id for item in runs} == {json.loads((tmp_path / "tracking.json").read_text())["wandb"]["run"]}
    assert {(item.project, item.display_name) for item in runs} == {("superft", "tiny")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["search.trials"] == "4"
    lines = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    for group, name in CURVES:
        curve = [(line[f"{group}/step"], line[f"{group}/{name}"]) for line in lines if f"{group}/step" in line]
        assert_same(curve, driver, group, name)
    assert (parts[-1] / "files" / "report.html").read_text() == (tmp_path / "report.html").read_text()


def records_of(path: Path) -> list[Any]:
    """Of a .wandb file: a header, then blocks of records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:  # too little for a header ends a block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


def test_a_finished_study_is_logged_by_the_same_command_and_trains_nothing(tmp_path: Path) -> None:
    """Tracking may be switched on late: the ledger has it all."""
    pytest.importorskip("tensorboardX")
    directory = tmp_path / "late"
    driver = made_study(directory)
    driver.ledger.close()
    write_report(directory)
    outcome = run_study(tiny_spec("tracking=[tensorboard]"), directory)
    assert outcome.state == "already_finished"
    assert json.loads((directory / "tracking.json").read_text())["tensorboard"] == {
        "place": "tensorboard", "run": "tensorboard", "rows": 5, "ended": True
    }  # fmt: skip
    assert list((directory / "tensorboard").iterdir())


def test_a_password_reaches_no_tool(tmp_path: Path) -> None:
    from study.tracking.files import parameters

    spec: StudySpec = tiny_spec("search.storage=postgresql://me:secret@db/x")
    assert "secret" not in "".join(parameters(spec).values())
    assert parameters(spec)["search.storage"] == "postgresql://me:***@db/x"
