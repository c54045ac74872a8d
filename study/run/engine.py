"""Runs a study on Ray Tune: victims first, then all trials over reused actors; continues after any crash."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from study.cluster.connect import ray_cluster, usable_nodes
from study.plan.costs import trial_cost, victim_cost, work_left
from study.plan.data import Data
from study.plan.forecast import look_ahead, plan_lines
from study.plan.jobs import prepare
from study.plan.slots import Room, wanted_gpus
from study.record.curves import write_curve
from study.record.ended import ENDED_FILE, read_ended, write_ended
from study.record.folder import LEDGER_FILE, REPORT_FILE, Folder, check_store
from study.record.kept import KEPT_FILE, keeping_of
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage, written_behind
from study.record.remote_folder import RemoteFolder, open_folder
from study.record.stopped import Trouble, stopping
from study.record.victims import Judged, Key, absent, absent_in_words, decided
from study.report.write import write_report
from study.results.failures import whole_failures
from study.results.left import with_chosen_detectors
from study.run.before_trials import check_implanted, make_victims, measure_kinds, settle
from study.run.dispatcher import Dispatcher
from study.run.driver import Driver
from study.run.kept_models import tidy_kept
from study.run.live import Live
from study.run.on_tune import run_trials
from study.run.progress import Progress
from study.run.trigger_picture import write_trigger_figures
from study.run.tune_detectors import tune_detectors
from study.search.optuna_search import OptunaSearch, open_searches
from study.search.warm_start import warm_points
from study.spec.plugins import as_plugins
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from study.tracking.marks import Marks
from study.tracking.trackers import check_trackers, tracking
from trainables.plugins.parcels import packed
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store

log = logging.getLogger("superft.engine")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``finished``, ``already_finished`` or ``interrupted``.

    ``failed``: one line for each victim, search and baseline without any result. ``absent``: lines on victims that hold
    no backdoor. ``empty``: nothing was left to run, since no victim holds one.
    """

    state: str
    report: str | None
    done: int
    total: int
    failed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    empty: bool = False


def run_study(spec: StudySpec, directory: Place, *, address: str | None = None, retry_failed: bool = False) -> Outcome:
    """Run or continue the study in ``directory``.

    Args:
        spec: what to run; an existing folder must hold the same.
        directory: of the study, or its URI.
        address: of a Ray cluster; None starts Ray on this machine for the time of the study.
        retry_failed: run trials that failed again; their rows are kept in ``trials.jsonl.retried``.

    Raises:
        SpecError, SettingError, DataError: bad input, before anything is written.
        NoBackdoorError: a victim holds none, and ``victim.require_implanted`` is ``stop``; no trial was run.
        StudyStoppedError: the folder, the database or the store failed; nothing is lost, and it can be continued.
    """
    check_trackers(spec, directory)
    plan, data, upstream = prepare(spec)
    spec = plan.spec
    trouble = Trouble(f"the study in {directory}")
    with _sigterm_as_sigint(), contextlib.ExitStack() as stack:
        home = stack.enter_context(open_folder(directory))
        home.check(spec)
        folder, is_new, dashboard = home.path, home.is_new, None
        warm = warm_points(plan) if is_new else {}
        store = open_store(spec.store)
        check_store(store)
        # A database that does not answer is found out before the folder is made; the journal lies within it.
        database = None if spec.search.storage == "journal" else open_storage(spec.search.storage, folder)
        if is_new:  # a cluster that does not answer, or fits no trial, is found out before the folder is made
            dashboard = stack.enter_context(ray_cluster(address))
            wanted_gpus(spec.resources, usable_nodes())
        stack.enter_context(home.driving(spec, trouble.report))
        stack.enter_context(stopping(trouble.what))
        ledger = stack.enter_context(Ledger(folder / LEDGER_FILE))
        for note in ledger.damaged:
            log.warning("%s", note.replace(str(folder), home.called))
        retried = 0
        if retry_failed:
            # The marks first: after a crash in between rows are sent once more, and none is missed.
            Marks(home).take_out([n for n, row in enumerate(ledger.rows()) if row.get("status") == "failed"])
            retried = ledger.set_aside_failed()
        judged = decided(folder, ledger.rows())
        check_implanted(judged, spec)
        plan = with_chosen_detectors(plan.without(absent(judged)), folder)
        if not is_new and not len(ledger):  # stopped before its first row
            warm = warm_points(plan)
        storage = open_storage("journal", folder) if database is None else stack.enter_context(written_behind(database))
        searches = open_searches(plan, storage, warm)
        if database is not None and not len(ledger):
            _check_unused(searches)

        def keep_ended(ended: Mapping[str, int]) -> None:
            write_ended(folder, ended)
            home.keep(ENDED_FILE)

        if (keeping := keeping_of(folder, spec)) is not None:
            home.keep(KEPT_FILE)
        driver = Driver(
            plan,
            ledger,
            searches,
            absent(judged),
            cost=lambda cell, settings: trial_cost(cell, settings, data),
            ended=read_ended(folder),
            on_end=keep_ended,
            on_curve=lambda row, points: home.keep(write_curve(folder, row, points)),
            keep=None if keeping is None else keeping.name_of,
        )
        progress = Progress(driver)
        stack.enter_context(tracking(lambda: driver.plan, ledger.rows, lambda: driver.finished, home, progress.say))
        if retried:
            progress.say(f"{retried} failed trials run again; their rows are kept in {LEDGER_FILE}.retried")
        state = "already_finished"
        if not driver.finished:
            if driver.done:
                progress.say(f"continuing: {driver.done} of {driver.total} trials are done")
            live = stack.enter_context(Live(driver, progress, home))
            try:
                # Twice: Ray's start puts a handler of its own over ours, which would abort the driver.
                cluster = contextlib.nullcontext(dashboard) if is_new else ray_cluster(address)
                with cluster as dashboard, _sigterm_as_sigint():
                    if dashboard:
                        progress.say(f"Ray dashboard: {dashboard}")
                    live.phase("victims", usable_nodes(), len(plan.victims()))
                    judged = _victims_on_ray((data, upstream), driver, progress, str(store.where), home, judged)
                    live.phase("detectors")
                    _detectors_on_ray(driver, progress, str(store.where), home, absent(judged))
                    _trials_on_ray(data, driver, progress, str(store.where), home, trouble, live)
            except KeyboardInterrupt:
                log.debug("interrupted")
            live.phase("report")
            trouble.check(f"stopped after {driver.done} of {driver.total} trials: ")
            state = "finished" if driver.finished else "interrupted"
        if driver.finished:
            for line in tidy_kept(keeping, store, ledger.rows()):
                progress.say(line)
        worth_telling = bool(driver.done or absent(judged))
        if worth_telling and (state != "already_finished" or not _is_current(folder)):
            write_trigger_figures(plan, data, store, folder / "figures")
            write_report(folder)
        report = f"{home.called}/{REPORT_FILE}" if worth_telling else None
    return Outcome(
        state=state,
        report=report,
        done=driver.done,
        total=driver.total,
        failed=tuple(whole_failures(ledger.rows())),
        absent=tuple(absent_in_words(judged, spec.victim.require_implanted)),
        empty=len(absent(judged)) == len(judged) > 0,
    )


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


def _victims_on_ray(
    data: tuple[Data, Data | None],
    driver: Driver,
    progress: Progress,
    store: str,
    home: Folder | RemoteFolder,
    judged: Mapping[Key, Judged],
) -> dict[Key, Judged]:
    """Say the plan, make the victims, and leave out of it what has no backdoor to remove; what is known of all.

    Raises:
        NoBackdoorError: a victim holds none, and the study wants to stop then.
    """
    plan = driver.plan
    left = {item.label: item.trials for item in work_left(plan, data[0], driver.remaining())}
    ahead = look_ahead(plan, data[0], home.path, usable_nodes(), left)
    said = plan_lines(plan, *data, left, done=driver.done)
    for line in [*said, *ahead.slot_lines(), ahead.time_line(driver.ledger.rows())]:
        progress.say(line)
    cost = partial(victim_cost, data=data[0], upstream=data[1])
    made = make_victims(plan, progress, ahead.victim_gpus, store, cost)
    settled = settle(judged, made.judged, home, progress)
    check_implanted(settled, plan.spec)
    driver.leave_out(absent(settled))
    driver.break_victims(made.failed)
    for line in absent_in_words(settled, plan.spec.victim.require_implanted):
        progress.say(line)
    return settled


def _detectors_on_ray(
    driver: Driver, progress: Progress, store: str, home: Folder | RemoteFolder, missing: Collection[Key]
) -> None:
    """Choose the detectors of the searches that tune theirs first."""
    left = driver.remaining()
    searches = [search for search in driver.plan.untuned() if left[search.label]]
    spec, broken = driver.plan.spec, driver.broken
    tuned = tune_detectors(searches, spec, progress, store, home, missing, broken, usable_nodes())
    driver.set_detectors({label: one.settings for label, one in tuned.items()})


def _trials_on_ray(
    data: Data,
    driver: Driver,
    progress: Progress,
    store: str,
    home: Folder | RemoteFolder,
    trouble: Trouble,
    live: Live,
) -> None:
    """Measure what shares a GPU, run the trials."""
    from ray import tune

    from trainables.tune import TrialTrainable

    if driver.finished:
        return
    plan = driver.plan
    left = {item.label: item.trials for item in work_left(plan, data, driver.remaining())}
    ahead = look_ahead(plan, data, home.path, usable_nodes(), left)
    if ahead.shares is None:
        live.phase("measuring")
        ahead = ahead.with_measured(measure_kinds(ahead, progress, store, home, driver.broken))
        for line in [*ahead.slot_lines(), ahead.time_line(driver.ledger.rows())]:
            progress.say(line)
    trainable = tune.with_parameters(
        TrialTrainable,
        store=store,
        cpus=ahead.cpus,
        trial_seconds=plan.spec.resources.trial_seconds,
        outside_bytes=ahead.outside_bytes,
        plugins=packed(as_plugins(plan.spec.plugins)),
    )
    progress.trials_begin()
    room = Room(ahead.nodes, ahead.cpus, recount=usable_nodes)
    dispatcher = Dispatcher(driver, progress, room, ahead.shares or {}, trouble)
    live.trials(dispatcher)
    run_trials(dispatcher, trainable)


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """SIGTERM (a job being stopped) ends the study as Ctrl-C does: in order, ready to be continued."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by a script, with &
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
