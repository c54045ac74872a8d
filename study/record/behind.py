"""An Optuna storage in memory with a database behind it: a database that answers slowly keeps nobody waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy

# Threads that write. Each waits for the database most of its time; more connections than this are not everywhere
# allowed.
WRITERS = 8


class Behind(InMemoryStorage):
    """Reads from memory; what changes of a trial is written to ``database`` by threads, soon after.

    Studies are read from the database when they are first asked for, and written there at once: there are few. A trial
    that is waiting to be written is written as it is when its turn comes, so that a database that cannot keep up gets
    each trial once, whole. Only what this process changed is written: notes and artifacts of others stay as they are.

    A driver that is killed leaves the last changes unwritten; the ledger has them (`OptunaSearch.resume`). So one
    driver at a time writes a study.

    Args:
        database: that keeps the studies.
        writers: threads; 1 where the database takes one writer at a time.

    Raises:
        StorageInternalError: from any change, and from `close`, once the database has refused one.
    """

    def __init__(self, database: BaseStorage, writers: int = WRITERS) -> None:
        super().__init__()
        self._database, self._writers = database, writers
        self._study_there: dict[int, int] = {}
        self._trial_there: dict[int, int] = {}
        self._written: dict[int, FrozenTrial] = {}  # as the database has it
        # Ids of trials that the database does not have as they are, in the order of their changes.
        self._finished: dict[int, None] = {}
        self._open: dict[int, None] = {}
        self._busy: set[int] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._held: dict[int, None] | None = None
        self._error: Exception | None = None
        self._closing = False

    # -- studies ---------------------------------------------------------------------------------------------------

    def get_all_studies(self) -> list[FrozenStudy]:
        """Those of the database; their ids are valid there."""
        return self._database.get_all_studies()

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name not in self._study_name_to_id:
            self._load(study_name)
        return super().get_study_id_from_name(study_name)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        there = self._database.create_new_study(directions, study_name)
        self._load(name := self._database.get_study_name_from_id(there))
        return super().get_study_id_from_name(name)

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError("studies are deleted in the database")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_user_attr(self._study_there[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_system_attr(self._study_there[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    def _load(self, name: str) -> None:
        there = self._database.get_study_id_from_name(name)
        here = super().create_new_study(self._database.get_study_directions(there), name)
        for key, value in self._database.get_study_user_attrs(there).items():
            super().set_study_user_attr(here, key, value)
        for key, value in self._database.get_study_system_attrs(there).items():
            super().set_study_system_attr(here, key, value)
        self._study_there[here] = there
        for trial in self._database.get_all_trials(there, deepcopy=False):
            trial_id = super().create_new_trial(here, trial)
            self._trial_there[trial_id] = trial._trial_id
            self._written[trial_id] = self.get_trial(trial_id)

    # -- trials ----------------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._note(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._note(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        done = super().set_trial_state_values(trial_id, state, values)
        self._note(trial_id)
        return done

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._note(trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._note(trial_id)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise NotImplementedError("a repair reports once")

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the block changes of a trial is written in one go, at the end of the block at the earliest."""
        if self._held is not None:
            yield
            return
        self._held = {}
        try:
            yield
        finally:
            held, self._held = self._held, None
            for trial_id in held:
                self._note(trial_id)

    @property
    def waiting(self) -> int:
        """Trials that the database does not have as they are."""
        with self._changed:
            return len(self._finished) + len(self._open) + len(self._busy)

    def close(self) -> None:
        """Wait until all is written (StorageInternalError where the database refuses)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise StorageInternalError(" ".join(str(self._error).split())) from self._error

    def _note(self, trial_id: int) -> None:
        self._check()
        if self._held is not None:
            self._held[trial_id] = None
            return
        with self._changed:
            if self.get_trial(trial_id).state.is_finished():
                self._open.pop(trial_id, None)
                self._finished[trial_id] = None
            else:
                self._open[trial_id] = None
            if len(self._threads) < self._writers:
                self._threads.append(threading.Thread(target=self._keep_writing, daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    def _keep_writing(self) -> None:
        while (trial_id := self._next()) is not None:
            try:
                self._write(trial_id)
            except Exception as error:  # noqa: BLE001 - whatever the database raises, the driver's next change says it
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy.discard(trial_id)
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The next trial to be written, results first; None once all is written and nothing more will come."""
        with self._changed:
            while self._error is None:
                for waiting in (self._finished, self._open):
                    trial_id = next((one for one in waiting if one not in self._busy), None)
                    if trial_id is not None:
                        del waiting[trial_id]
                        self._busy.add(trial_id)
                        return trial_id
                if self._closing and not self._finished and not self._open:
                    return None
                self._changed.wait()
            return None

    def _write(self, trial_id: int) -> None:
        """Bring the database up to what is known of a trial."""
        now, before = self.get_trial(trial_id), self._written.get(trial_id)
        if before is None:
            here, _ = self._trial_id_to_study_id_and_number[trial_id]
            self._trial_there[trial_id] = self._database.create_new_trial(self._study_there[here], now)
        else:
            there = self._trial_there[trial_id]
            for name, value in _new(now.params, before.params).items():
                one = now.distributions[name]
                self._database.set_trial_param(there, name, one.to_internal_repr(value), one)
            for name, value in _new(now.user_attrs, before.user_attrs).items():
                self._database.set_trial_user_attr(there, name, value)
            for name, value in _new(now.system_attrs, before.system_attrs).items():
                self._database.set_trial_system_attr(there, name, value)
            if now.state != before.state:
                self._database.set_trial_state_values(there, now.state, now.values)
        self._written[trial_id] = now


def _new(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in now.items() if key not in before or before[key] != value}
