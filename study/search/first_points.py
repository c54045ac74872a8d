"""What a search asks first: the published point, the space's further starting points, other studies' fronts."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import fingerprint
from study.plan.jobs import Search
from study.search.trials import PUBLISHED, WARM_START, Trials
from study.search.warm_start import WarmPoint

# User attribute of a point that the space names to begin with: its name.
START = "start"


class FirstPoints:
    """Lets points wait in the storage, where they come before any suggestion of the sampler.

    Args:
        trials: of the search.
        published: whether the search begins with the published point, and with the space's starting points.
        warm: settings of other studies, asked after the published point.
    """

    def __init__(self, trials: Trials, *, published: bool, warm: Sequence[WarmPoint] = ()) -> None:
        self._trials, self._published, self._warm = trials, published, tuple(warm)

    def enqueue(self, known: Container[str], *, waiting: bool) -> None:
        """Ask soon for all of them that were not asked yet.

        Args:
            known: fingerprints of the settings that were asked.
            waiting: whether points waited in the storage as it was opened; the published one is the first of them.
        """
        published = self._search.published_settings()
        if self._published and not waiting and fingerprint(published) not in known:
            self._add(self._search.paper_params(), self._trials.mark(published))
        self._enqueue_starts(known)
        self._enqueue_warm(known)
        self.enqueue_tuned(known)

    def enqueue_tuned(self, known: Container[str]) -> None:
        """Ask soon for the published rate beside the detector that was chosen: else nothing shows what that changed."""
        if self._search.tuned is None or not self._published or not self._search.begins_beside:
            return
        if all({PUBLISHED, WARM_START} & set(trial.user_attrs) for trial in self._waiting()):
            first = self._search.settings(self._search.paper_params())
            if fingerprint(first) not in known:
                self._add(self._search.paper_params())

    def _enqueue_starts(self, known: Container[str]) -> None:
        """The further points that the space begins with, unless they wait or were asked already."""
        if not self._published:
            return
        there = {trial.user_attrs.get(START) for trial in self._waiting()}
        for name, params in self._search.space.starting_points().items():
            if name not in there and fingerprint(self._search.settings(params)) not in known:
                self._add(params, {START: name})

    def origins(self) -> dict[str, str]:
        """Of each setting of other studies its fingerprint and the study; the published point is nobody's."""
        found: dict[str, str] = {}
        for point in self._warm:
            found.setdefault(self._fingerprint(point), point.origin)
        if self._published:
            found.pop(fingerprint(self._search.decided(self._search.published_settings())), None)
        return found

    def _enqueue_warm(self, known: Container[str]) -> None:
        """What other studies found, unless it waits in the storage, was asked, or is the published point."""
        stored = self._trials.study.get_trials(deepcopy=False)
        there = {fingerprint(one.system_attrs["fixed_params"]) for one in stored if "fixed_params" in one.system_attrs}
        there |= {fingerprint(self._search.paper_params())} if self._published else set()
        for point in self._warm:
            if fingerprint(point.params) not in there and self._fingerprint(point) not in known:
                self._add(point.params, {WARM_START: point.origin})

    def _fingerprint(self, point: WarmPoint) -> str:
        """Of the settings that the point is in this search."""
        return fingerprint(self._search.decided(self._search.settings(point.params)))

    @property
    def _search(self) -> Search:
        return self._trials.search

    def _waiting(self) -> list[FrozenTrial]:
        return self._trials.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _add(self, params: Mapping[str, Any], marks: Mapping[str, Any] | None = None) -> None:
        self._trials.study.enqueue_trial(dict(params), user_attrs=None if marks is None else dict(marks))
