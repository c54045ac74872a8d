"""Real `superft` processes for tests: started in their own session, watched, and gone with all that they started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from study.record.optuna_storage import open_storage
from tests.study.commands import invoke
from tests.study.tiny import TINY

ROOT = Path(__file__).parents[2]
MARK = "SUPERFT_TEST_MARK"
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
# Not time that it takes: workers have a low priority and wait for whatever else the machine does.
PATIENCE = 600.0  # seconds

# Defenses that go wrong, or wait, when they run. They reach the workers as a further folder of `trainables.defenses`.
PLUG_IN = '''
import os, signal, time
from dataclasses import dataclass
from typing import ClassVar

from trainables.defenses.base import Defense, NoData, Repair, register
from trainables.defenses.super_ft import SuperFineTuning
from trainables.training.loop import Counters


@dataclass(frozen=True)
class Faulty(Defense):
    """For tests."""

    owns: ClassVar[type[NoData]] = NoData

    def plan(self, n_owned, n_validation=0):
        return Counters()


@register("raises")
@dataclass(frozen=True)
class Raises(Faulty):
    """Raises; counts its attempts in a file."""

    def repair(self, model, assets, trainer):
        with open(os.environ["SUPERFT_TEST_ATTEMPTS"], "a") as file:
            file.write("x")
        raise RuntimeError("the card is on fire\\nreally")


@register("hangs")
@dataclass(frozen=True)
class Hangs(Faulty):
    """Comes to no end; its time limit, however long, is over in a moment."""

    def repair(self, model, assets, trainer):
        with open(os.environ["SUPERFT_TEST_ATTEMPTS"] + ".hung", "a") as file:
            file.write("x")
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        time.sleep(3600)


@register("dies_once")
@dataclass(frozen=True)
class DiesOnce(Faulty):
    """Ends its process, the first time only."""

    def repair(self, model, assets, trainer):
        try:
            open(os.environ["SUPERFT_TEST_ATTEMPTS"] + ".died", "x").close()
        except FileExistsError:
            return Repair(model)
        os._exit(1)


@register("meets")
@dataclass(frozen=True)
class Meets(Faulty):
    """Comes to an end once trials of two nodes have begun."""

    def repair(self, model, assets, trainer):
        import ray

        begun = os.environ["SUPERFT_TEST_ATTEMPTS"] + ".begun"
        os.makedirs(begun, exist_ok=True)
        open(os.path.join(begun, ray.get_runtime_context().get_node_id()), "a").close()
        while len(os.listdir(begun)) < 2:
            time.sleep(0.1)
        return Repair(model)


@register("gated")
@dataclass(frozen=True)
class Gated(SuperFineTuning):
    """Super-FT, but all trials after the first two of a place wait until its gate is open."""

    def repair(self, model, assets, trainer):
        gate = os.environ["SUPERFT_TEST_ATTEMPTS"] + ".gate"
        with open(gate + ".begun", "ab", buffering=0) as file:
            file.write(b"x")
            number = file.tell()
        while number > 2 and not os.path.exists(gate):
            time.sleep(0.1)
        return super().repair(model, assets, trainer)
'''
# A study in which it searches has two rows of its own (and one of every baseline that came before), and is not over.
GATED: dict[str, Any] = {"defenses": ["gated"], "defense": {"gated": TINY["defense"]["super_ft"]}}


@dataclass
class Place:
    """Where a test's studies run: its own store, temporary folder (a short path: Ray's sockets) and environment."""

    folder: Path
    temporary: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    inside: tuple[str, ...] = ()  # a command that runs another one, for instance in a namespace

    def __post_init__(self) -> None:
        plug_in = self.folder / "plugin"
        (plug_in / "defenses").mkdir(parents=True)
        (plug_in / "defenses" / "faulty.py").write_text(PLUG_IN)
        (plug_in / "spaces").mkdir()
        (plug_in / "spaces" / "gated.py").write_text("from search_spaces.super_ft import *\n")
        (plug_in / "sitecustomize.py").write_text(
            f"import search_spaces\nsearch_spaces.__path__.append({str(plug_in / 'spaces')!r})\n"
            f"import trainables.defenses\ntrainables.defenses.__path__.append({str(plug_in / 'defenses')!r})\n"
        )

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts"

    def open_gate(self) -> None:
        """Let the trials of `gated` go on."""
        self.attempts.with_name(f"{self.attempts.name}.gate").touch()

    def environment(self, plug_in: bool = False) -> dict[str, str]:
        paths = [str(self.folder / "plugin")] * plug_in + [str(ROOT)]
        inherited = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
        return inherited | {
            MARK: self.mark,
            "PYTHONPATH": os.pathsep.join(paths),
            "SUPERFT_STORE": str(self.store),
            "SUPERFT_TEST_ATTEMPTS": str(self.attempts),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
        }

    def spec(self, name: str = "tiny", **changes: Any) -> Path:
        """A YAML file of TINY with other top-level keys."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**TINY, "name": name, **changes}, sort_keys=False))
        return path

    def start(self, *arguments: object, plug_in: bool = False) -> Running:
        """`superft ARGUMENTS` in a session of its own, its two streams in files."""
        number = len(list(self.folder.glob("*.stdout")))
        out, err = self.folder / f"{number}.stdout", self.folder / f"{number}.stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*self.inside, sys.executable, "-m", "study.cli", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env=self.environment(plug_in),
                start_new_session=True,
            )
        return Running(process, out, err)

    def run(self, *arguments: object, plug_in: bool = False, timeout: float = 240) -> Finished:
        """The same, to its end."""
        return self.start(*arguments, plug_in=plug_in).end(timeout)

    def here(self, *arguments: object) -> Finished:
        """The same in this process, which saves starting one: for commands that end before they start anything."""
        with mock.patch.dict(os.environ, self.environment()):
            result = invoke(*arguments)
        return Finished(result.exit_code, result.stdout, result.stderr)

    def processes(self) -> list[int]:
        """Ids of all living processes that descend from this place's."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                    if alive and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def wait_until_alone(self, seconds: float = 60) -> None:
        """Until no process of this place lives."""
        wait_for(lambda: not self.processes(), seconds, lambda: f"still alive: {self.names()}")

    def wait_until_killed(self, seconds: float = 60) -> None:
        """Likewise after the driver was killed. Ray's two agents report to the dead for two minutes: they are ended."""
        wait_for(lambda: set(self.names()) <= AGENTS, seconds, lambda: f"still alive: {self.names()}")
        self.kill()

    def names(self) -> list[str]:
        found = []
        for number in self.processes():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ").strip()[:200])
        return found

    def kill(self) -> None:
        """End what is left, by id."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def left_over(self) -> list[str]:
        """Temporary folders of studies that were not removed."""
        return sorted(item.name for item in self.temporary.glob("sft-*"))


@dataclass
class Running:
    """A started command."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def said(self, text: str, seconds: float = 120) -> None:
        """Wait until standard error holds ``text``."""
        wait_for(
            lambda: text in self.stderr.read_text() or self.process.poll() is not None,
            seconds,
            lambda: f"not said: {text!r}; said: {self.stderr.read_text()}",
        )
        assert text in self.stderr.read_text()

    def signal_group(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 240) -> Finished:
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(
                f"no end within {timeout} s; stderr:\n{self.stderr.read_text()}\nstdout:\n{self.stdout.read_text()}"
            ) from None
        return Finished(code, self.stdout.read_text(), self.stderr.read_text())


@dataclass
class Finished:
    code: int
    stdout: str
    stderr: str


def wait_for(
    condition: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: "not met", pause: float = 0.05
) -> None:
    """Ask every ``pause`` seconds until it holds; after ``seconds`` it is an assertion that says ``why``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s: {why()}"
        time.sleep(pause)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Whole rows of a ledger, also while it is being written."""
    path = directory / "trials.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def optuna_trials(directory: Path) -> list[FrozenTrial]:
    """Of all searches in the journal of a study."""
    storage = open_storage("journal", directory)
    return [
        trial
        for name in optuna.study.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials()
    ]


def optuna_states(directory: Path) -> list[TrialState]:
    return [trial.state for trial in optuna_trials(directory)]


def on_one_core() -> tuple[str, ...]:
    """What runs a command on one core: its studies then have one slot.

    Every worker of Ray imports PyTorch anew, so that a second slot costs a tiny study more than it gives. Tests that
    run side by side take different cores. Where there is no taskset, it is nothing.
    """
    if shutil.which("taskset") is None or not hasattr(os, "sched_getaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ("taskset", "-c", str(cores[worker % len(cores)]))


@contextlib.contextmanager
def new_place(folder: Path, inside: tuple[str, ...] = ()) -> Iterator[Place]:
    """A place whose processes and temporary folders are gone in the end (a test that left some has failed before)."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        place = Place(folder, Path(temporary), inside=inside)
        try:
            yield place
        finally:
            place.kill()
