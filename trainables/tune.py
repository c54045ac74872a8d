"""The Tune class Trainable around `trial.run_trial`: an actor keeps data and victims over trials, one report each."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import ray
import torch
from ray import tune
from torch import nn

from trainables.data.images import DataError
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.job import Cell, Cut, Failed, Job, NoGpu, OutOfMemory, Report, Row, StoreLost
from trainables.machine.device import NoGpuError, given_device
from trainables.machine.device_meter import CONTEXT_BYTES, DeviceMeter, Measuring, cap_memory, meter_of
from trainables.machine.out_of_memory import is_out_of_memory
from trainables.plugins.errors import MethodError, told
from trainables.plugins.parcels import Parcel, unpack
from trainables.registry import SettingError
from trainables.storage.kept import keeper
from trainables.storage.remote import as_place
from trainables.storage.remote_store import open_store
from trainables.storage.store import StoreUnavailableError
from trainables.training.arithmetic import arithmetic, arithmetic_text
from trainables.training.loop import Counters, DivergedError
from trainables.trial import run_trial
from trainables.workbench import Workbench

# What a trial beyond its time limit gets to come back to Python in.
GRACE_SECONDS = 30.0


def bench(store: str, cpus: int, trains: bool = True, plugins: tuple[Parcel, ...] = ()) -> Workbench:
    """The workbench of this process, with the driver's plug-ins, on the GPU that Ray gave it, else on ``cpus`` threads.

    Raises:
        NoGpuError: Ray gave a GPU that torch does not find.
        PluginError: a plug-in cannot be loaded here.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        device = given_device(ray.get_gpu_ids())
    except NoGpuError as error:
        raise NoGpuError(f"node {_node()}: {error}") from error
    unpack(plugins)
    # The whole process: loading and measuring take no more of the node than a trial may.
    torch.set_num_threads(cpus)
    return Workbench(open_store(as_place(store)), device, trains=trains, threads=cpus)


def _node() -> str:
    """The node that this process runs on, as rows name it."""
    return str(ray.get_runtime_context().get_node_id())[:12]


def may_pass(error: Exception) -> bool:
    """Whether another try, in another process, may end otherwise: memory, disk, Ray, or a GPU that needs a new process.

    Everything else a method raised by itself, and it would raise it again.
    """
    if isinstance(error, OSError | MemoryError | ray.exceptions.RayError) or is_out_of_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA", "cuDNN", "CUBLAS", "NCCL"))


class TimeLimitError(Exception):
    """A trial took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitError` in the block once ``seconds`` are over (None: never); for a process's main thread.

    What hangs in native code and does not come back within `GRACE_SECONDS` more ends the process: Ray starts another.
    """
    if seconds is None:
        yield
        return
    message = f"cut after {seconds:g} s (resources.trial_seconds)"

    def cut(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError(message)

    end = threading.Timer(seconds + GRACE_SECONDS, os._exit, (1,))
    end.daemon = True
    previous = signal.signal(signal.SIGALRM, cut)
    end.start()
    try:  # two, since the alarm may also come while the first of them ends
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous)
        end.cancel()


class TrialTrainable(tune.Trainable):
    """One trial per `step`.

    Config keys: ``job``, and ``gpus`` (share of a card, the same for all trials of an actor: Tune gives an actor only
    to trials that ask for the same resources). The result's key ``report`` holds a `job.Report`.
    """

    def setup(
        self,
        config: dict[str, Any],
        store: str = "",
        cpus: int = 1,
        trial_seconds: float | None = None,
        outside_bytes: int = CONTEXT_BYTES,
        plugins: tuple[Parcel, ...] = (),
    ) -> None:
        self.trial_seconds, self.node, self.no_gpu = trial_seconds, _node(), ""
        self.meter: DeviceMeter | None = None
        self.reset_config(config)
        # Its victims were made before: one that is missing now means that the store is gone, not that it is to be made.
        try:
            self.bench = bench(store, cpus, trains=False, plugins=plugins)
        except NoGpuError as error:  # reported, not raised: Ray would start such a process again and again
            self.no_gpu = str(error)
            return
        self.meter = meter_of(self.bench.device)
        if self.meter is not None:
            cap_memory(self.meter, self.gpus, outside_bytes)

    def step(self) -> dict[str, Any]:
        report = self._attempt()
        if isinstance(report, OutOfMemory) and self.meter is not None:
            # The error is gone, and with it the frames that held the tensors.
            gc.collect()
            self.meter.release()
        return {"report": report, "done": True}

    def _attempt(self) -> Report:
        """The row, or why there is none. That is not raised: Tune would try again with the same time and memory."""
        if self.no_gpu:
            return NoGpu(self.no_gpu)
        try:
            with time_limit(self.trial_seconds):
                job = self.job
                result = self.bench.run(job.cell, job.settings, job.curve, job.aftermath, self._keeper())
        except TimeLimitError as error:
            return Cut(str(error))
        except StoreUnavailableError as error:  # the actor lives on, for when the store is back
            return StoreLost(f"node {self.node}: {error}")
        except Exception as error:
            if is_out_of_memory(error):
                return OutOfMemory(str(error))
            if may_pass(error):
                raise
            return Failed(told(error))
        curve = json.dumps(result.curve, allow_nan=False) if result.curve else ""
        return Row(json.dumps(result.row(node=self.node, gpus=self.gpus), allow_nan=False), curve)

    def _keeper(self) -> Callable[[nn.Module], dict[str, Any]] | None:
        """What keeps the job's repaired model, with what its file says of it; None where it is not kept."""
        if not (job := self.job).keep:
            return None
        trial, attack, seed, defense_seed = job.key
        facts = {"trial": trial, "attack": attack, "seed": seed, "defense_seed": defense_seed}
        write = keeper(self.bench.store, job.keep, {**facts, "model": job.cell.victim.model})

        def keep(model: nn.Module) -> dict[str, Any]:
            try:
                return write(model)
            except TimeLimitError as error:  # all was measured: the trial is done
                return {"not_kept": str(error)}

        return keep

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.job: Job = new_config["job"]
        self.gpus: float = new_config["gpus"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def train_victim(cell: Cell, store: str, cpus: int, gpus: float, plugins: tuple[Parcel, ...] = ()) -> dict[str, Any]:
    """Ray task: obtain the cell's victim; what people want to know of it, JSON-able."""
    place, notes = bench(store, cpus, plugins=plugins), _Notes()
    if (meter := meter_of(place.device)) is not None:
        cap_memory(meter, gpus)
    logger = logging.getLogger("superft.store")
    logger.addHandler(notes)
    found = place.store.holds(place.victim_name(cell))
    try:
        victim = place.victim(cell)
    except (DataError, SettingError, DivergedError):
        raise
    except Exception as error:
        if may_pass(error):
            raise
        # The place would be lost on the way to the driver, with the traceback.
        raise MethodError(told(error)) from error
    finally:
        logger.removeHandler(notes)
    return {
        "victim": victim.name,
        "attack": cell.victim.attack,
        "seed": cell.seed,
        "not_implanted": victim.why_not_implanted,
        "asr_base": victim.asr_base,
        "seconds": victim.facts["seconds"],
        "found": found and not notes.lines,
        "trained_on": victim.trained_on,
        "computes_on": arithmetic_text(arithmetic(place.device, cell.victim.precision)),
        "notes": notes.lines,
        **dataclasses.asdict(victim.evaluation.full),
    }


def measure_trial(
    cell: Cell,
    settings: dict[str, Any],
    store: str,
    cpus: int,
    seconds: float,
    plugins: tuple[Parcel, ...] = (),
    aftermath: Aftermath | None = None,
) -> dict[str, Any]:
    """Ray task on a card of its own, in a process of its own: one trial, and what it takes of the card.

    The victim is loaded before the clock starts, as it is in an actor that has run a trial before. No work of other
    trials is reused, so a trial of the study takes this long at most.

    Args:
        cell, settings, aftermath: of the trial.
        store, cpus, plugins: as for a trial.
        seconds: after which it is cut; what was seen until then counts.

    Returns:
        `Usage` and: ``seconds`` it took, ``cut``, its work as `Counters` and ``train_size``, ``node``, ``error``
        (None, or why there is no more to know).
    """
    place, work, error, cut = bench(store, cpus, trains=False, plugins=plugins), Counters(), None, False
    meter = meter_of(place.device)
    assert meter is not None, "a measurement is given a GPU"
    dataset, victim = place.dataset(cell.data), place.victim(cell)
    started = time.perf_counter()
    with Measuring(meter) as measuring:
        try:
            with time_limit(seconds):
                given: dict[str, Any] = {"dataset": dataset, "victim": victim, "device": place.device}
                run_trial(cell, settings, **given, counters=work, aftermath=aftermath)
        except TimeLimitError:
            cut = True
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            error = str(problem)
    assert measuring.usage is not None
    return {
        **dataclasses.asdict(measuring.usage),
        **dataclasses.asdict(work),
        "seconds": time.perf_counter() - started,
        "train_size": len(victim.attacker_indices),
        "cut": cut,
        "error": error,
        "node": ray.get_runtime_context().get_node_id(),
    }


def judge_detectors(
    cell: Cell,
    proposed: Sequence[Mapping[str, Any]],
    store: str,
    cpus: int,
    seconds: float | None,
    plugins: tuple[Parcel, ...] = (),
) -> dict[str, Any]:
    """Ray task: what the cell's defense would leave out under each of the proposed settings, without any training.

    Args:
        seconds: after which it is cut (`TimeLimitError`), as a trial would be; None: never.

    Returns:
        ``found``: columns of `detection.detection_columns` for each of the settings; the work that was done now as
        `Counters`, and ``train_size``.
    """
    place = bench(store, cpus, trains=False, plugins=plugins)
    try:
        with time_limit(seconds):
            found, work = place.judge_detectors(cell, proposed)
    except (DataError, SettingError, StoreUnavailableError, TimeLimitError):
        raise
    except Exception as error:
        if may_pass(error):
            raise
        raise MethodError(told(error)) from error
    train_size = len(place.victim(cell).attacker_indices)
    return {"found": found, **dataclasses.asdict(work), "train_size": train_size}


class _Notes(logging.Handler):
    """Keeps what the store warns of (a damaged file), since nobody reads the log of a Ray worker."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
