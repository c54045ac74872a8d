"""Optuna after an interruption: brought up to the ledger, which is the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from study.results.scores import Values
from study.search.trials import Trials

WITHOUT_VALUES = (TrialState.FAIL, TrialState.PRUNED)


def bring_up_to_ledger(
    trials: Trials,
    stored: Sequence[FrozenTrial],
    finished: Mapping[str, Values | None],
    started: Mapping[str, Mapping[str, Any]],
    remarks: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """End, begin and restore trials until they are what the ledger says of the search.

    Args:
        trials: of the search.
        stored: all that its storage holds.
        finished, started, remarks: see `OptunaSearch.resume`.

    Returns:
        Settings by trial id that were asked but not finished, now under a running trial each, unless they ended in the
        storage before.
    """
    unfinished: dict[str, dict[str, Any]] = {}
    for trial in stored:
        trial_id = trial.user_attrs.get("id")
        if trial.state.is_finished() and trial_id is not None and trial_id not in finished:
            # Its row was lost with a damaged line, or failed and was taken out: measured again. Optuna keeps what
            # it was told; what has no values there told it none, so they follow as a trial of their own.
            unfinished[trial_id] = trials.settings_of(trial)
            if trial.state in WITHOUT_VALUES:
                trials.told_failed(trial_id, unfinished[trial_id])
        if trial.state != TrialState.RUNNING:
            continue
        if trial_id is None or set(trial.params) != set(trials.search.space.names_of(trial.params)):
            trials.give_up(trial.number)  # the driver was killed while asking it
            continue
        trials.take_up(trial_id, trial.number)
        if trial_id in finished:
            trials.tell(trial_id, finished[trial_id], remarks.get(trial_id, {}))
        else:
            unfinished[trial_id] = trials.settings_of(trial)
    # A trial that waits may have an id, where a database was left between two writes: asked again, it is a repeat. One
    # that ended without values, while the ledger has some, failed once and was measured since.
    present = {
        trial.user_attrs["id"]
        for trial in stored
        if "id" in trial.user_attrs
        and trial.state != TrialState.WAITING
        and not (trial.state in WITHOUT_VALUES and finished.get(trial.user_attrs["id"]) is not None)
    }
    for trial_id in sorted(started.keys() - present):
        # The storage was deleted or is another one.
        if trial_id in finished:
            trials.restore(trial_id, finished[trial_id], started[trial_id], remarks.get(trial_id, {}))
        else:
            trials.ask_again(trial_id, started[trial_id])
            unfinished[trial_id] = trials.search.decided(started[trial_id])
    trials.told.update(finished)
    return unfinished
