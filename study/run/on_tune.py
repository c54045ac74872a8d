"""All trials of a study over reused actors of Ray Tune, which only executes: the record is the ledger."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.record.stopped import Trouble
from study.record.temporary import scratch_folder
from study.run.dispatcher import Dispatcher
from trainables.plugins.errors import MethodError

# A trial whose process or node is lost, or that fails for want of memory or disk, is tried again this often, then
# recorded with its cause. What a method raises by itself is reported, not raised: see `trainables.tune.may_pass`.
MAX_FAILURES = 2
LONGEST_CAUSE = 400  # characters of it in the row


def run_trials(dispatcher: Dispatcher, trainable: Any) -> None:
    """All of the dispatcher's jobs on actors of ``trainable`` on a running Ray; trouble or Ctrl-C ends it early."""
    from ray import tune

    feeder, recorder = _make_feeder(dispatcher)
    cpus = dispatcher.room.cpus

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        # Tune hands an idle actor only to a trial that asks for what the actor has.
        gpus = {"GPU": config["gpus"]} if config["gpus"] else {}
        return tune.PlacementGroupFactory([{"CPU": cpus, **gpus}])

    with scratch_folder() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
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
                stop=_stopper(dispatcher.trouble),
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


def _make_feeder(dispatcher: Dispatcher) -> tuple[Any, Any]:
    """The Tune searcher that hands out the dispatcher's jobs, and the callback that tells it of those that failed.

    Tune's own limit of trials at once is fixed at the start and would leave a node that joins later idle.
    """
    from ray import tune
    from ray.tune.experiment import Trial
    from ray.tune.search import Searcher

    noticing = dispatcher.trouble.noticing

    class Feeder(Searcher):
        """Suggests the next job and hands its result back. Optuna's storage is the record, not Tune's."""

        @noticing
        def suggest(self, trial_id: str) -> Any:
            started = dispatcher.start(trial_id)
            if started is None:
                return Searcher.FINISHED if dispatcher.idle else None
            job, gpus = started
            return {"job": job, "gpus": gpus}

        @noticing
        def on_trial_complete(
            self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
        ) -> None:
            # An errored trial is told by the callback, which knows the cause; one stopped by Ctrl-C has no row and
            # stays RUNNING in Optuna, to be taken up again.
            if result and not error and "report" in result:
                dispatcher.report(trial_id, result["report"])

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a study continues from its ledger, never from Tune's snapshots."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, see `save`."""

    class Recorder(tune.Callback):
        @noticing
        def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            error = _error_of(trial)
            dispatcher.lost(trial.trial_id, cause(error), _is_the_nodes_fault(error))

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

    error = root(error)
    return isinstance(error, ActorUnavailableError) or (
        isinstance(error, RayActorError) and "node" in str(error).lower() and "died" in str(error).lower()
    )


def root(error: BaseException | None) -> BaseException | None:
    """What was raised at first: Ray wraps it, sometimes more than once."""
    while error is not None and isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    return error


def cause(error: BaseException | None) -> str:
    """The root of an error in one line."""
    error = root(error)
    if error is None:
        return "unknown error"
    if isinstance(error, MethodError):
        return str(error)[:LONGEST_CAUSE]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(("Traceback", "\x1b[36mray::", "ray::")):
        lines = lines[-1:]  # a trace; what was raised stands last
    text, name = " ".join(lines)[:LONGEST_CAUSE], type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"
