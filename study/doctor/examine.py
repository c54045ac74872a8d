"""Takes all looks, each within its time: in a process of their own, which is ended and replaced when one hangs."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO

from study.doctor.finding import Finding, Options
from study.doctor.looks import LOOKS, Look

WORKER = ("-P", "-m", "study.doctor.worker")
END_SECONDS = 5.0
LONGEST_CAUSE = 300  # characters
MOST_PROBLEMS = 125  # of an exit code; from 126 on it means something else to a shell


def examine(options: Options, looks: Mapping[str, Look] = LOOKS) -> Iterator[tuple[str, Finding]]:
    """The name of each look and what it found, as they come. No look takes longer than its time."""
    failed: set[str] = set()
    worker: _Worker | None = None
    try:
        for name, look in looks.items():
            if look.needs in failed:
                failed.add(name)  # and so what needs this one
                yield name, Finding("warn", f"not looked at, because of {look.needs}", f"mend {look.needs} first")
                continue
            worker = worker or _Worker(options)
            extra = 3 * options.seconds if name == "throughput" else 0.0
            finding = worker.ask(name, look.seconds + extra)
            if worker.is_over:
                worker.end()
                worker = None
            if finding.verdict == "fail":
                failed.add(name)
            yield name, finding
    finally:
        if worker is not None:
            worker.end()


def exit_code(problems: int) -> int:
    """The number of problems, as far as an exit code can tell it."""
    return min(problems, MOST_PROBLEMS)


class _Worker:
    """A running `worker`."""

    def __init__(self, options: Options) -> None:
        self.is_over = False
        self._process = subprocess.Popen(
            [sys.executable, *WORKER, json.dumps(dataclasses.asdict(options))],
            # It imports from where this process does, whatever started it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # it is ended with all that it started
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=20)
        threading.Thread(target=self._read_answers, args=(self._process.stdout,), daemon=True).start()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def ask(self, name: str, seconds: float) -> Finding:
        """What the look found; that it hung or crashed is a finding too, and this worker is over then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=seconds)
        except BrokenPipeError:
            answer = None
        except queue.Empty:
            self.is_over = True
            return Finding(
                "fail", f"gave no answer within {seconds:.0f} s", "find out what hangs there: superft waits for it too"
            )
        if answer is not None:
            return Finding(**json.loads(answer))
        self.is_over = True
        self._listener.join(END_SECONDS)
        return Finding(
            "fail",
            f"the look itself failed: {self._cause()}",
            "if that names no fault of this machine, tell superft's authors",
        )

    def end(self) -> None:
        """End it and what it started; one that the kernel does not let go is left behind."""
        if self._process.poll() is None and not self.is_over:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # all have ended
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

    def _cause(self) -> str:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        if code < 0:
            return f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
        return (self._said[-1] if self._said else f"its process ended with code {code}")[:LONGEST_CAUSE]

    def _read_answers(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put(None)

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._said.append(line.strip())
