"""Metrics of a running study through Ray's own exporter, and the Grafana file that shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from study.record.now import NodeNow, Now
from study.run import ray_metrics
from study.run.ray_metrics import METRICS, PHASES, STATES, RayMetrics
from tests.study.rows import failed_row, point

BOARD = Path(__file__).parents[3] / "cluster" / "grafana.json"
NODE = NodeNow("a", 8, 2, "", 3)
NOW = Now("host", 1, 0.0, 0.0, "trials", nodes=(NODE,), slots=8, running=3, gpus_busy=0.75, victims=4, left=10)


class Recorded:
    """In place of Ray's metrics: what was recorded, by name and tags."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}

    def make(self, name: str) -> Any:
        def note(value: float, tags: dict[str, str]) -> None:
            assert set(tags) == {"study", *METRICS[name].tags}
            self.values.setdefault((name, tuple(sorted(tags.items()))), []).append(value)

        return type("Made", (), {"set": staticmethod(note), "inc": staticmethod(note), "observe": staticmethod(note)})

    def of(self, name: str, **tags: str) -> list[float]:
        return self.values.get((name, tuple(sorted({"study": "s", **tags}.items()))), [])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(ray_metrics, "_made", found.make)
    return found


def test_states_slots_and_cards_add_up(recorded: Recorded) -> None:
    old, new = point(0, 0.1, 0.9), failed_row("badnets/super_ft/0001")
    metrics = RayMetrics("s", [old])
    metrics.record(NOW, [old, new], {"badnets/super_ft": 0.5}, None)
    trials = {state: recorded.of("superft_trials", state=state) for state in STATES}
    assert trials["waiting"] == [7.0]
    assert trials["running"] == [3.0]
    assert trials["ok"] == [1.0], "of an earlier run of this study"
    assert trials["failed"] == [1.0]
    assert [recorded.of("superft_slots", state=state) for state in ("busy", "free")] == [[3.0], [5.0]]
    assert [recorded.of("superft_gpus", state=state) for state in ("busy", "free")] == [[0.75], [1.25]]
    assert recorded.of("superft_victims", state="waiting") == [4.0]
    assert recorded.of("superft_hypervolume", search="badnets/super_ft") == [0.5]
    assert recorded.of("superft_seconds_left") == [-1.0]


def test_the_time_of_a_trial_is_counted_once_and_only_of_this_run(recorded: Recorded) -> None:
    old, new = point(0, 0.1, 0.9), point(1, 0.1, 0.9, seconds_repair=7.0, wall_seconds=9.0)
    metrics = RayMetrics("s", [old])
    for _ in range(3):
        metrics.record(NOW, [old, new], {}, 5.0)
    assert recorded.of("superft_phase_seconds", defense="super_ft", phase="repair") == [7.0]
    assert recorded.of("superft_trial_seconds", defense="super_ft") == [9.0]
    phases = {dict(tags)["phase"] for name, tags in recorded.values if name == "superft_phase_seconds"}
    assert phases <= set(PHASES)


def test_tags_are_bounded_whatever_the_rows_hold(recorded: Recorded) -> None:
    rows = [point(number, 0.1, 0.9, seed=number) for number in range(50)]
    searches = {f"s{number}": 0.5 for number in range(ray_metrics.MOST_SEARCHES + 50)}
    RayMetrics("s").record(NOW, rows, searches, 1.0)
    series = [name for name, _ in recorded.values]
    assert series.count("superft_hypervolume") == ray_metrics.MOST_SEARCHES
    assert len(series) - ray_metrics.MOST_SEARCHES < 30, "as many as for one row"


def test_where_ray_has_no_metrics_they_are_left_out_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def broken(name: str) -> None:
        tries.append(name)
        raise ImportError("no module named opentelemetry")

    monkeypatch.setattr(ray_metrics, "_made", broken)
    metrics = RayMetrics("s")
    with caplog.at_level("INFO", "superft.metrics"):
        for _ in range(3):
            metrics.record(NOW, [], {}, None)
    assert len(tries) == 1
    assert [record.message for record in caplog.records] == [
        "no metrics (no module named opentelemetry); the study goes on"
    ]


# --- the file for Grafana ----------------------------------------------------------------------------------------


def exposed(name: str) -> set[str]:
    """Under which names Prometheus has a metric."""
    ends = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {f"ray_{name}{end}" for end in ends[METRICS[name].kind]}


def queries() -> list[str]:
    board = json.loads(BOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [one["definition"] for one in board["templating"]["list"] if "definition" in one]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for query in queries() for name in re.findall(r"ray_superft_\w+", query)}
    for name in METRICS:
        assert shown & exposed(name), f"{name} is on no panel"
    assert shown <= {text for name in METRICS for text in exposed(name)}


def test_the_dashboard_groups_and_filters_by_tags_that_the_metrics_have() -> None:
    for query in queries():
        (name,) = {name for name in METRICS if any(text in query for text in exposed(name))}
        known = {"study", "le", *METRICS[name].tags}
        named = {word for group in re.findall(r"by \(([^)]*)\)", query) for word in re.split(r",\s*", group)}
        named |= {word for group in re.findall(r"\{([^}]*)\}", query) for word in re.findall(r"(\w+)=", group)}
        assert named <= known, query
        for state in re.findall(r'state="(\w+)"', query):
            assert state in ("busy", "free")


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(BOARD.read_text())
    assert board["uid"] == "superft"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}", "of the user's Grafana, and not of ours"
        assert panel["description"]
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= 24
