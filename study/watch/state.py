"""How far a study is, as data: what `superft show` says, and what `superft show --json` gives to scripts.

Read without touching the study, also while it runs: from its ledger, and from what its driver says of itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study.plan.jobs import Plan
from study.record.ended import read_ended
from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.now import SILENT_SECONDS, Now, read_now
from study.record.victims import Judged, Key, decided
from study.record.words import finished_at
from study.results.left import plan_in, trials_left
from study.results.search_states import SearchState, search_states
from study.spec.schema import StudySpec
from trainables.attacks.base import ATTACKS

SCHEMA = 1  # raised when a key of `as_json` changes its meaning
PACE_TRIALS = 20  # the last so many tell how long the rest takes; with many slots, four for each
STATES = ("finished", "running", "silent", "stopped", "not begun")

# Keys of `as_json`, in their order; with a dot: of the object, or of each of the objects, of that name.
KEYS = {
    "schema": "version of these keys: 1",
    "study": "name of the study",
    "place": "its folder or URI, as it was given",
    "state": "`finished`; `running`; `silent`: the driver says nothing any more, so it was killed or its machine is "
    "gone; `stopped`: trials are left and nobody runs it; `not begun`",
    "phase": "of the run: `starting`, `victims`, `detectors`, `measuring`, `trials`, `report`; null where none runs",
    "trials.done": "rows of the ledger",
    "trials.left": "trials to come, as far as it is known",
    "trials.running": "trials that run; null where none can",
    "statuses": "how many rows have each status",
    "seconds_in_trials": "their time, summed, s",
    "last_trial_ended": "time of it, ISO 8601 in UTC; null: none has ended",
    "seconds_left": "at the pace of the last trials, s; null: not known",
    "pace_trials": "how many trials that pace is of",
    "driver.host": "machine of the driver; `driver` is null where none has run",
    "driver.pid": "its process there",
    "driver.began": "when this run began, ISO 8601 in UTC, by the driver's clock",
    "driver.seen": "when it last said so",
    "slots.busy": "trials that run; `slots` is null where no driver runs",
    "slots.total": "the most that fit at once; null: not known yet",
    "gpus.busy": "GPUs given to running trials, shares summed; `gpus` is null where no driver runs",
    "gpus.total": "of all nodes",
    "nodes.name": "the beginning of its id in Ray",
    "nodes.alive": "whether the running driver sees it; a study may also have had nodes that are gone",
    "nodes.cpus": "for trials; null of a node that is gone",
    "nodes.gpus": "likewise",
    "nodes.accelerator": "Ray's name of its kind of card; empty: none, or not known",
    "nodes.running": "trials that are thought to run there",
    "nodes.done": "rows of the ledger that were made there",
    "victims_needed": "victims that the study needs; null: not known yet",
    "victims_ready": "of them, as the driver says; null where none has said",
    "victims.attack": "victims that the rows tell of, as they were before repair",
    "victims.seed": "of the victim",
    "victims.combination": "of a sweep, the one it was first met in; else empty",
    "victims.asr": "on the whole test set, in [0, 1]",
    "victims.clean_accuracy": "likewise",
    "victims.backdoor": "`implanted`, `none meant` (the clean control) or `not implanted`",
    "searches.label": "attack and defense, of a sweep with the combination before them",
    "searches.settings": "settings with a result on every model",
    "searches.left": "settings to come",
    "searches.at_most": "whether `left` is an upper bound: of what a search will choose, to be run on fresh seeds",
    "searches.front": "settings on its front; null of what runs on fresh seeds",
    "searches.hypervolume_search": "of the front, on the half of the test set that the search reads; null: none yet",
    "searches.hypervolume_report": "the same front on the half that people read",
    "searches.models": "on how many models its numbers rest, in words; empty: one",
    "failed.trial": "trials that failed: the id",
    "failed.attack": "its attack",
    "failed.seed": "its seed",
    "failed.error": "the cause, one line",
    "notes": "lines of the ledger that could not be read, in words",
}


@dataclass(frozen=True)
class State:
    """A study at one moment; ``seconds_left`` at the pace of the last ``pace_trials`` trials, None where not known."""

    spec: StudySpec
    called: str
    rows: Sequence[Mapping[str, Any]]
    plan: Plan
    judged: Mapping[Key, Judged]
    left: Counter[str]
    searches: Sequence[SearchState]
    damaged: Sequence[str]
    driver: Now | None
    looked: float
    last_ended: float | None
    seconds_left: float | None
    pace_trials: int

    @property
    def state(self) -> str:
        """One of STATES."""
        driver = self.driver
        if driver is not None and driver.phase != "ended":
            return "running" if self.looked - driver.seen <= SILENT_SECONDS else "silent"
        if not self.left.total():
            return "finished"
        return "stopped" if self.rows or driver is not None else "not begun"

    @property
    def statuses(self) -> dict[str, int]:
        """How many rows have each status."""
        return dict(sorted(Counter(str(row["status"]) for row in self.rows).items()))

    @property
    def seconds_in_trials(self) -> float:
        """Of all rows together."""
        return float(sum(row.get("wall_seconds") or 0.0 for row in self.rows))

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """Rows of trials that failed."""
        return [row for row in self.rows if row["status"] == "failed"]

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes, then those that rows tell of and that are gone."""
        done = Counter(str(row["node"]) for row in self.rows if row.get("node"))
        found = []
        for node in self.driver.nodes if self.driver is not None and self.state == "running" else ():
            short = next((name for name in done if node.name.startswith(name)), node.name[:12])
            about = {"cpus": node.cpus, "gpus": node.gpus, "accelerator": node.accelerator, "running": node.running}
            found.append({"name": short, "alive": True, **about, "done": done.pop(short, 0)})
        gone = {"alive": False, "cpus": None, "gpus": None, "accelerator": "", "running": 0}
        return found + [{"name": name, **gone, "done": count} for name, count in done.items()]

    def victims(self) -> list[dict[str, Any]]:
        """The models that trials were run on, as they were before repair (full test set)."""
        seen: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for row in self.rows:
            if row.get("asr_before") is None or row.get("role") == "control":
                continue
            of = row.get("combination") or ""
            key = (row["attack"], row["seed"], of and (row.get("victim") or of))  # combinations may share a victim
            if key not in seen or row["status"] == "backdoor_not_implanted":
                seen[key] = row
        return [_victim(row) for row in seen.values()]

    def as_json(self) -> dict[str, Any]:
        """The keys KEYS, JSON-able."""
        driver, runs = self.driver, self.state == "running"
        return {
            "schema": SCHEMA,
            "study": self.spec.name,
            "place": self.called,
            "state": self.state,
            "phase": driver.phase if driver is not None and runs else None,
            "trials": {
                "done": len(self.rows),
                "left": self.left.total(),
                "running": driver.running if driver is not None and runs else None,
            },
            "statuses": self.statuses,
            "seconds_in_trials": self.seconds_in_trials,
            "last_trial_ended": _iso(self.last_ended),
            "seconds_left": self.seconds_left,
            "pace_trials": self.pace_trials,
            "driver": None
            if driver is None
            else {
                "host": driver.host,
                "pid": driver.pid,
                "began": _iso(driver.began),
                "seen": _iso(driver.seen),
            },
            "slots": {"busy": driver.running, "total": driver.slots} if driver is not None and runs else None,
            "gpus": {"busy": driver.gpus_busy, "total": driver.gpus} if driver is not None and runs else None,
            "nodes": self.nodes(),
            "victims_needed": None if driver is None else driver.victims,
            "victims_ready": None if driver is None else driver.victims_ready,
            "victims": self.victims(),
            "searches": [asdict(search) for search in self.searches],
            "failed": [{key: row.get(key) for key in ("trial", "attack", "seed", "error")} for row in self.failed],
            "notes": list(self.damaged),
        }


def state_of(directory: Path, *, called: str, now: float | None = None) -> State:
    """How far the study in ``directory`` is.

    Args:
        directory: a study's folder.
        called: what people call it.
        now: seconds since the epoch; tests pass their own.

    Raises:
        SpecError: it is no study's folder, or its ledger is of a later version.
    """
    spec = stored_spec(directory)
    ledger = Ledger.read(directory / LEDGER_FILE)
    rows, driver = ledger.rows(), read_now(directory)
    judged = decided(directory, rows)
    plan = plan_in(directory, spec, rows)
    left = trials_left(plan, rows, read_ended(directory))
    ends = sorted(end for row in rows if (end := finished_at(row)) is not None)
    # Of the last driver alone: the night between two is no pace.
    own = [end for end in ends if driver is None or end >= driver.began]
    recent = own[-max(PACE_TRIALS, 4 * (driver.running if driver is not None else 0)) :]
    seconds = None
    if left.total() and len(recent) > 2 and recent[-1] > recent[0]:
        seconds = left.total() * (recent[-1] - recent[0]) / (len(recent) - 1)
    return State(
        spec=spec,
        called=called,
        rows=rows,
        plan=plan,
        judged=judged,
        left=left,
        searches=search_states(plan, rows, left),
        damaged=ledger.damaged,
        driver=driver,
        looked=time.time() if now is None else now,
        last_ended=ends[-1] if ends else None,
        seconds_left=seconds,
        pace_trials=len(recent),
    )


def _victim(row: Mapping[str, Any]) -> dict[str, Any]:
    said = "implanted" if ATTACKS.get(row["attack"]).implants_backdoor else "none meant"
    return {
        "attack": row["attack"],
        "seed": row["seed"],
        "combination": row.get("combination") or "",
        "asr": row["asr_before"],
        "clean_accuracy": row["clean_accuracy_before"],
        "backdoor": "not implanted" if row["status"] == "backdoor_not_implanted" else said,
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
