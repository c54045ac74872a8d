"""Runs a study on Ray Tune: victims first, then all trials over reused actors; continues after any crash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from study.driver import Driver
from study.folder import LEDGER_FILE, REPORT_FILE, check_store
from study.ledger import Ledger
from study.plan import Job, Plan, Slots, check_plan, count_slots, load_data, make_plan
from study.progress import Progress
from study.remote_folder import open_folder
from study.report import write_report
from study.scratch import scratch_folder
from study.search import OptunaSearch, open_searches
from study.settings import SpecError
from study.spec import StudySpec
from study.storage import open_storage
from study.tracking import check_trackers, tracking
from study.trigger_picture import write_trigger_figures
from study.trouble import StudyStoppedError, Trouble, stopping
from trainables.remote import Place
from trainables.remote_store import open_store
from trainables.store import Store, StoreUnavailableError

log = logging.getLogger("superft.engine")

# A trial that raises is tried again this often (a lost node, a full card), then recorded with its cause.
MAX_FAILURES = 2
# A node that died is still offered for some seconds, and a trial can lose all its tries to it: it is then put back.
MAX_RETURNS = 3
CONNECT_SECONDS = 10.0
RECOUNT_SECONDS = 2.0  # between looks at the nodes
LONGEST_CAUSE = 400  # characters of it in the row


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``finished``, ``already_finished`` or ``interrupted``."""

    state: str
    report: str | None
    done: int
    total: int


def run_study(spec: StudySpec, directory: Place, *, address: str | None = None) -> Outcome:
    """Run or continue the study in ``directory``.

    Args:
        spec: what to run; an existing folder must hold the same.
        directory: of the study, or its URI.
        address: of a Ray cluster; None starts Ray on this machine for the time of the study.

    Raises:
        SpecError, SettingError, DataError: bad input, before anything is written.
        StudyStoppedError: the folder, the database or the store failed; nothing is lost, and it can be continued.
    """
    plan = make_plan(spec)
    check_trackers(spec, directory)
    dataset, upstream = load_data(spec)
    check_plan(plan, dataset, upstream)
    trouble = Trouble(f"the study in {directory}")
    with _sigterm_as_sigint(), contextlib.ExitStack() as stack:
        home = stack.enter_context(open_folder(directory))
        home.check(spec)
        folder, is_new, dashboard = home.path, home.is_new, None
        store = open_store(spec.store)
        check_store(store)
        # A database that does not answer is found out before the folder is made; the journal lies within it.
        database = None if spec.search.storage == "journal" else open_storage(spec.search.storage, folder)
        if is_new:  # a cluster that does not answer, or fits no trial, is found out before the folder is made
            dashboard = stack.enter_context(ray_cluster(address))
            _slots(plan)
        stack.enter_context(home.driving(spec, trouble.report))
        stack.enter_context(stopping(trouble.what))
        ledger = stack.enter_context(Ledger(folder / LEDGER_FILE))
        for note in ledger.damaged:
            log.warning("%s", note)
        searches = open_searches(plan, database or open_storage("journal", folder))
        if database is not None and not len(ledger):
            _check_unused(searches)
        driver = Driver(plan, ledger, searches)
        progress = Progress(driver)
        stack.enter_context(tracking(driver, home, progress.say))
        state = "already_finished"
        if driver.has_work():
            if driver.done:
                progress.say(f"continuing: {driver.done} of {driver.total} trials are done")
            try:
                # Twice: Ray's start puts a handler of its own over ours, which would abort the driver.
                cluster = contextlib.nullcontext(dashboard) if is_new else ray_cluster(address)
                with cluster as dashboard, _sigterm_as_sigint():
                    if dashboard:
                        progress.say(f"Ray dashboard: {dashboard}")
                    _run_on_ray(plan, driver, progress, store, trouble)
            except KeyboardInterrupt:
                log.debug("interrupted")
            trouble.check(f"stopped after {driver.done} of {driver.total} trials: ")
            state = "finished" if driver.finished else "interrupted"
        if driver.done and (state != "already_finished" or not _is_current(folder)):
            write_trigger_figures(plan, dataset, store, folder / "figures")
            write_report(folder)
        report = f"{home.called}/{REPORT_FILE}" if driver.done else None
    return Outcome(state, report, driver.done, driver.total)


def _check_unused(searches: list[OptunaSearch]) -> None:
    """Refuse a database that holds results of this study while its folder holds none: they are another folder's."""
    for search in searches:
        if search.told:
            raise SpecError(
                f"search.storage holds a study {search.study.study_name!r} of another folder; "
                "choose another name, another database, or that folder as --out"
            )


def _is_current(directory: Path) -> bool:
    """Whether the report is there and not older than the ledger."""
    report = directory / REPORT_FILE
    return report.is_file() and report.stat().st_mtime_ns >= (directory / LEDGER_FILE).stat().st_mtime_ns


def _slots(plan: Plan) -> Slots:
    """What the running Ray holds at once (SpecError where that is no trial)."""
    import ray

    return count_slots([node["Resources"] for node in ray.nodes() if node["Alive"]], plan.spec)


def _run_on_ray(plan: Plan, driver: Driver, progress: Progress, store: Store, trouble: Trouble) -> None:
    from ray import tune

    from trainables.tune import TrialTrainable

    slots = _slots(plan)
    progress.say(
        f"{driver.total - driver.done} trials on {slots.count} slots of {slots.cpus} CPU"
        + (f" and {slots.gpus:g} GPU" if slots.gpus else "")
    )
    driver.break_cells(_make_victims(plan, progress, slots, store))
    trainable = tune.with_parameters(
        TrialTrainable,
        cells=plan.cells,
        store=str(store.where),
        cpus=slots.cpus,
        trial_seconds=plan.spec.resources.trial_seconds,
    )
    run_trials(driver, progress, slots, trainable, trouble, recount=lambda: _slots(plan).count)


def _make_victims(plan: Plan, progress: Progress, slots: Slots, store: Store) -> dict[int, str]:
    """Train the victims that are missing, side by side; the cells of those that failed, with the cause."""
    import ray

    from trainables.tune import train_victim

    task = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_retries=MAX_FAILURES)(train_victim)
    waiting = {task.remote(cell, str(store.where), slots.cpus): cell for cell in plan.victims()}
    failed: dict[str, str] = {}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(ready[0])
        try:
            progress.victim(ray.get(ready[0]))
        except ray.exceptions.RayError as error:
            if isinstance(_root(error), StoreUnavailableError):
                raise StudyStoppedError(str(_root(error))) from error
            failed[repr(cell.victim)] = f"victim: {_cause(error)}"
            progress.say(f"victim {cell.victim.attack} (seed {cell.seed}) FAILED: {_cause(error)}")
    return {number: failed[repr(cell.victim)] for number, cell in enumerate(plan.cells) if repr(cell.victim) in failed}


class Room:
    """How many trials may run at once: what the nodes hold, counted again as nodes come and go.

    Args:
        count: slots at the start.
        recount: slots now; None: they stay as they are.
    """

    def __init__(self, count: int, recount: Callable[[], int] | None = None) -> None:
        self._count, self._recount, self._counted = count, recount, time.monotonic()

    def __call__(self) -> int:
        if self._recount is not None and time.monotonic() - self._counted > RECOUNT_SECONDS:
            with contextlib.suppress(SpecError):  # no node for the moment: what is running waits for one
                self._count = self._recount()
            self._counted = time.monotonic()
        return self._count


def run_trials(
    driver: Driver,
    progress: Progress,
    slots: Slots,
    trainable: Any,
    trouble: Trouble,
    recount: Callable[[], int] | None = None,
) -> None:
    """All jobs of the driver over reused actors of ``trainable`` on a running Ray; trouble or Ctrl-C ends it early."""
    from ray import tune

    feeder, recorder = _make_feeder(driver, progress, Room(slots.count, recount), trouble)
    with scratch_folder() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": slots.cpus, "gpu": slots.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=feeder,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a class trainable's default is True
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[recorder],
                stop=_stopper(trouble),
                verbose=0,
            ),
        )
        tuner.fit()


def _stopper(trouble: Trouble) -> Any:
    """Ends the Tune run once there is trouble."""
    from ray import tune

    class Stopper(tune.Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return trouble.cause is not None

    return Stopper()


def _make_feeder(driver: Driver, progress: Progress, room: Room, trouble: Trouble) -> tuple[Any, Any]:
    """The Tune searcher that hands out the driver's jobs, and the callback that records those that failed.

    It hands out exactly as many as there are slots: more would make suggestions staler. Tune's own limit is fixed at
    the start and would leave a node that joins later idle.
    """
    from ray import tune
    from ray.tune.experiment import Trial
    from ray.tune.search import Searcher

    running: dict[str, Job] = {}
    returned: Counter[tuple[str, int]] = Counter()

    def put_back(job: Job) -> bool:
        """Hand the job out again, unless that was done often enough."""
        key = (job.trial, job.cell)
        if returned[key] >= MAX_RETURNS:
            return False
        returned[key] += 1
        driver.put_back(job)
        return True

    class Feeder(Searcher):
        """Suggests the driver's next job and hands its result back. Optuna's storage is the record, not Tune's."""

        @trouble.noticing
        def suggest(self, trial_id: str) -> Any:
            if len(running) >= room():
                return None
            job = driver.next_job()
            if job is None:
                # A running trial may be put back, or its cost may allow another.
                return None if running or driver.waits() else Searcher.FINISHED
            running[trial_id] = job
            return {"cell": job.cell, "settings": job.settings}

        @trouble.noticing
        def on_trial_complete(
            self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
        ) -> None:
            # An errored trial is recorded by the callback, which knows the cause; one stopped by Ctrl-C has no row
            # and stays RUNNING in Optuna, to be taken up again.
            if error or not result or trial_id not in running:
                return
            if "row" in result:
                progress.trial(driver.finish(running.pop(trial_id), json.loads(result["row"])))
            elif "cut" in result:
                progress.trial(driver.fail(running.pop(trial_id), result["cut"]))
            elif "lost" in result and not put_back(running.pop(trial_id)):
                trouble.report(result["lost"])

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a study continues from its ledger, never from Tune's snapshots."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, see `save`."""

    class Recorder(tune.Callback):
        @trouble.noticing
        def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            if trial.trial_id not in running:
                return
            job, error = running.pop(trial.trial_id), _error_of(trial)
            if not (_is_the_nodes_fault(error) and put_back(job)):
                progress.trial(driver.fail(job, _cause(error)))

    return Feeder(), Recorder()


def _error_of(trial: Any) -> BaseException | None:
    """What a Tune trial raised. `Trial.get_error` looks in the synced folder, where it is not yet."""
    path = trial.pickled_error_file
    if path is None or not Path(path).is_file():
        return RuntimeError(Path(trial.error_file).read_text()) if trial.error_file else None
    with open(path, "rb") as file:
        error: BaseException = pickle.load(file)  # written by this very process, into its own scratch folder
    return error


def _is_the_nodes_fault(error: BaseException | None) -> bool:
    """Whether a trial was lost with the machine it ran on, rather than by what it did."""
    from ray.exceptions import ActorUnavailableError, RayActorError

    error = _root(error)
    return isinstance(error, ActorUnavailableError) or (
        isinstance(error, RayActorError) and "node" in str(error).lower() and "died" in str(error).lower()
    )


def _root(error: BaseException | None) -> BaseException | None:
    """What the trial raised: Ray wraps it, sometimes more than once."""
    while error is not None and isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    return error


def _cause(error: BaseException | None) -> str:
    """The root of an error in one line."""
    error = _root(error)
    if error is None:
        return "unknown error"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(("Traceback", "\x1b[36mray::", "ray::")):
        lines = lines[-1:]  # a trace; what was raised stands last
    text, name = " ".join(lines)[:LONGEST_CAUSE], type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[str | None]:
    """Ray for the time of the study: the given cluster, or one on this machine that is gone afterwards.

    Gives this job's page of the cluster's dashboard, where it has one.
    """
    # Ray reads these at its import or start; a user's own setting wins.
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our ledger is the record
        "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),  # the feeder limits; with 1, Tune's default, slots stay empty
        "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # Tune's snapshots are never restored
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a spec may name its data by a relative path
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }.items():
        os.environ.setdefault(key, value)
    if address is not None:
        _check_answers(address)
    import ray

    # Tune logs each failed attempt with its traceback; the ledger and our own line keep the cause.
    logging.getLogger("ray.tune").setLevel(logging.DEBUG if log.isEnabledFor(logging.INFO) else logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        try:
            if address is None and "RAY_ADDRESS" not in os.environ:
                temporary = stack.enter_context(scratch_folder())
                context = ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(temporary),
                )
            else:
                context = ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            # All lines: of a version mismatch the first one names no version.
            why = " ".join(str(error).split())[:LONGEST_CAUSE]
            hint = "; is it up, and its token here (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)?"
            raise SpecError(
                f"--address {address}: cannot reach a Ray cluster: {why}"
                f"{hint if isinstance(error, ConnectionError) else ''}"
            ) from error
        stack.callback(ray.shutdown)
        url = context.dashboard_url
        yield f"http://{url}/#/jobs/{ray.get_runtime_context().get_job_id()}" if url else None


def _check_answers(address: str) -> None:
    """Refuse HOST:PORT where nobody listens: Ray itself would go on trying for many minutes (SpecError)."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local" or a name that Ray itself explains
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SpecError(f"--address {address}: cannot reach a Ray cluster: {error}") from error


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """SIGTERM (a job being stopped) ends the study as Ctrl-C does: in order, ready to be continued."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
