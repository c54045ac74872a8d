"""What a running study says: done/total, front and hypervolume of the search that moved, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from study.record.words import describe, duration, finishing_time
from study.results.scores import models_in_words
from study.run.driver import Driver

# Plain lines come at most this often (seconds), so that a study of thousands of trials leaves a readable log.
LINE_EVERY = 2.0
FEW = 3  # trials
LONG = 600.0  # seconds


class Progress:
    """Says each finished trial in one flushed line; on a terminal a status line with the time left stays below.

    Args:
        driver: of the study.
        stream: default standard error, so that standard output stays for results.
        clock: seconds; tests pass their own.
    """

    def __init__(
        self, driver: Driver, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.driver, self.stream, self.clock = driver, stream or sys.stderr, clock
        self.interactive = self.stream.isatty()
        self.trials_begin()
        self._last_line = -LINE_EVERY
        self._failed, self._not_kept = 0, 0
        # For those who look on, from other threads, which must not ask the driver while it works.
        self.victims_ready = self.victims_failed = 0
        self.left = driver.total - driver.done
        self.seconds_left: float | None = None
        self.hypervolumes: dict[str, float] = {}  # of each search that has a front, on the search half

    def say(self, text: str) -> None:
        """One line, at once."""
        if self.interactive:
            self.stream.write("\r\x1b[2K")
        self.stream.write(text + "\n")
        self.stream.flush()

    def trials_begin(self) -> None:
        """The first trials start now: the time left is reckoned from here."""
        self._started, self._done_before = self.clock(), self.driver.done

    def victim(self, facts: Mapping[str, Any]) -> None:
        """A victim is ready."""
        self.victims_ready += 1
        for note in facts["notes"]:
            self.say(f"WARNING: {note}")
        # A victim is shared whatever trained it; its trials then differ from those of a store of their own.
        if facts["trained_on"] not in ("", facts["computes_on"]):
            other = f", trained on {facts['trained_on']} where this study's trials have {facts['computes_on']}"
        else:
            other = ""
        made = f"from the store{other}" if facts["found"] else f"trained in {facts['seconds']:.0f} s"
        base = "" if facts["asr_base"] is None else f", ASR of the trigger on a clean model {facts['asr_base']:.3f}"
        why = facts["not_implanted"]
        warning = "" if why is None else f"  WARNING: no backdoor: {why}; {self._consequence()}"
        self.say(
            f"victim {facts['attack']} (seed {facts['seed']}): clean accuracy {facts['clean_accuracy']:.3f}, "
            f"ASR {facts['asr']:.3f}{base}; {made}{warning}"
        )

    def victim_failed(self, name: str, cause: str) -> None:
        """A victim could not be made."""
        self.victims_failed += 1
        self.say(f"{name} FAILED: {cause}")

    def _consequence(self) -> str:
        return {
            "stop": "the study stops (victim.require_implanted)",
            "skip": "its trials are not run (victim.require_implanted)",
            "run": "its trials count in no front",
        }[self.driver.plan.spec.victim.require_implanted]

    def trial(self, row: Mapping[str, Any]) -> None:
        """A trial is recorded."""
        self._failed += row["status"] == "failed"
        if row.get("not_kept"):
            self._not_kept += 1
            if self._not_kept == 1:  # a full disk would say it of every trial
                self.say(f"WARNING: the model of {row['trial']} was not kept ({row['not_kept']}); its row is recorded")
        now = self.clock()
        self.left = self.driver.total - self.driver.done
        self.seconds_left = self._seconds_left(now)
        if (front := self.driver.fronts.get(str(row["search"]))) is not None and len(front):
            self.hypervolumes[str(row["search"])] = front.hypervolume
        last = self.left <= 0
        if self.interactive or last or row["status"] == "failed" or now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self.say(f"[{self.driver.done}/{self.driver.total}] {describe(row)}{self._front(row)}{self._left()}")

    def _front(self, row: Mapping[str, Any]) -> str:
        front = self.driver.fronts.get(str(row["search"]))
        if front is None:
            return ""
        words = models_in_words(*self.driver.models_of(str(row["search"])))
        return f" | front {len(front)}, hypervolume {front.hypervolume:.4f}{f' ({words})' if words else ''}"

    def _seconds_left(self, now: float) -> float | None:
        """At the pace of this run; None while no trial of it has ended."""
        made = self.driver.done - self._done_before
        return (now - self._started) / made * max(0, self.left) if made else None

    def _left(self) -> str:
        if self.seconds_left is None or self.left <= 0:
            return ""
        text = f" | {duration(self.seconds_left)} left"
        # The first few trials say little, and a short time needs no date.
        made = self.driver.done - self._done_before
        late = made >= FEW and self.seconds_left > LONG
        return f"{text}, until {finishing_time(self.seconds_left)}" if late else text
