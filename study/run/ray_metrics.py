"""A running study in Ray's own metrics, which Prometheus reads from every node's exporter as ``ray_superft_...``.

The driver alone records them. Tags are few and bounded: the study, the labels of its defenses and searches, and words
that stand here; never a trial, a seed or a setting. ``cluster/grafana.json`` shows all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from study.record.now import Now
from study.results.scores import STATUSES
from trainables.storage.messages import one_line

log = logging.getLogger("superft.metrics")

# Of a trial, by the columns of its row; all but the last two are parts of its wall time.
PHASES = ("setup", "repair", "evaluate", "aftermath", "keep")
STATES = ("waiting", "running", *STATUSES)
SECONDS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)  # of a trial
MOST_SEARCHES = 200  # that have a hypervolume here: of a great sweep, the first ones


@dataclass(frozen=True)
class Metric:
    """One metric as Prometheus has it, without Ray's ``ray_`` before it; a counter's name there ends in ``_total``."""

    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    tags: tuple[str, ...] = ()


# Every metric has the tag ``study`` besides.
METRICS = {
    "superft_trials": Metric(
        "gauge", "Trials by state: waiting, running, and of those with a row its status", ("state",)
    ),
    "superft_phase_seconds": Metric(
        "counter",
        "Seconds of this run's trials by phase: setup, repair, evaluate, aftermath, keep",
        ("defense", "phase"),
    ),
    "superft_trial_seconds": Metric("histogram", "Seconds of a trial, of this run's", ("defense",)),
    "superft_victims": Metric("gauge", "Victims by state: waiting, ready, failed", ("state",)),
    "superft_slots": Metric("gauge", "Places for trials by state: busy, free", ("state",)),
    "superft_gpus": Metric("gauge", "GPUs by state, shares summed: busy (given to running trials), free", ("state",)),
    "superft_seconds_left": Metric("gauge", "Seconds that the trials left take at the pace of this run; -1: not known"),
    "superft_hypervolume": Metric(
        "gauge", "Hypervolume of each search's front on the search half, 0 to 1", ("search",)
    ),
}


class RayMetrics:
    """Records a study's numbers; if Ray's metrics do not work, it says so in the log once, and records nothing.

    Args:
        study: its name.
        rows: of its ledger when this run began: they are counted as trials, and their time is not.
    """

    def __init__(self, study: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self._study, self._works = study, True
        self._statuses = Counter(str(row["status"]) for row in rows)
        self._rows = len(rows)
        self._metrics: dict[str, Any] = {}

    def record(
        self,
        now: Now,
        rows: Sequence[Mapping[str, Any]],
        hypervolumes: Mapping[str, float],
        seconds_left: float | None,
    ) -> None:
        """Set all metrics; ``rows``: of the ledger so far, ``hypervolumes`` by the search's label."""
        if not self._works:
            return
        try:
            self._record(now, rows, hypervolumes, seconds_left)
        except Exception as error:  # noqa: BLE001 - whatever Ray's metrics raise, they must not touch the study
            self._works = False
            log.info("no metrics (%s); the study goes on", one_line(error))

    def _record(
        self, now: Now, rows: Sequence[Mapping[str, Any]], hypervolumes: Mapping[str, float], seconds_left: float | None
    ) -> None:
        for row in rows[self._rows :]:
            self._statuses[str(row["status"])] += 1
            defense = str(row.get("defense_label") or row.get("defense"))
            self._at("superft_trial_seconds", defense=defense).observe(float(row.get("wall_seconds") or 0.0))
            for phase in PHASES:
                if (seconds := float(row.get(f"seconds_{phase}") or 0.0)) > 0:
                    self._at("superft_phase_seconds", defense=defense, phase=phase).inc(seconds)
        self._rows = max(self._rows, len(rows))
        trials = {"waiting": max(0, now.left - now.running), "running": now.running}
        trials |= {status: self._statuses[status] for status in STATUSES}
        self._by_state("superft_trials", trials)
        ready, failed = now.victims_ready, now.victims_failed
        waiting = max(0, (now.victims or 0) - ready - failed)
        self._by_state("superft_victims", {"waiting": waiting, "ready": ready, "failed": failed})
        self._by_state("superft_slots", {"busy": now.running, "free": max(0, (now.slots or 0) - now.running)})
        self._by_state("superft_gpus", {"busy": now.gpus_busy, "free": max(0.0, now.gpus - now.gpus_busy)})
        self._at("superft_seconds_left").set(-1.0 if seconds_left is None else seconds_left)
        for search, volume in [*hypervolumes.items()][:MOST_SEARCHES]:
            self._at("superft_hypervolume", search=search).set(volume)

    def _by_state(self, name: str, values: Mapping[str, float]) -> None:
        for state, value in values.items():
            self._at(name, state=state).set(float(value))

    def _at(self, name: str, **tags: str) -> _Tagged:
        if name not in self._metrics:
            self._metrics[name] = _made(name)
        return _Tagged(self._metrics[name], {"study": self._study, **tags})


@dataclass(frozen=True)
class _Tagged:
    """A metric of Ray's with the values of its tags."""

    metric: Any
    tags: dict[str, str]

    def set(self, value: float) -> None:
        self.metric.set(value, tags=self.tags)

    def inc(self, value: float) -> None:
        self.metric.inc(value, tags=self.tags)

    def observe(self, value: float) -> None:
        self.metric.observe(value, tags=self.tags)


def _made(name: str) -> Any:
    from ray.util import metrics

    about = METRICS[name]
    tags = ("study", *about.tags)
    if about.kind == "histogram":
        return metrics.Histogram(name, about.meaning, boundaries=list(SECONDS), tag_keys=tags)
    return (metrics.Gauge if about.kind == "gauge" else metrics.Counter)(name, about.meaning, tag_keys=tags)
