"""What keeps TPE quick changes no suggestion, unless a study asks for a bounded history."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers._tpe import _truncnorm
from optuna.trial import TrialState

from study.record.optuna_storage import Journal, open_storage
from study.search.recent_tpe import DRAWN_TOGETHER, RecentTPE, _Model, log_mass, use_fast_tails
from study.search.trials import CONSTRAINT
from study.spec.load import make_spec
from study.spec.samplers import SAMPLERS, check_sampler, make_sampler
from study.spec.search import SearchSpec
from study.spec.yaml_io import SpecError
from tests import foreign
from tests.study.tiny import TINY
from trainables.plugins.load import load

_OPTUNAS_LOG_MASS = _truncnorm._log_gauss_mass  # before a sampler of ours was made
SPACE = {"x": FloatDistribution(1e-4, 1.0, log=True), "y": FloatDistribution(0.0, 1.0), "k": IntDistribution(1, 500)}


def search(sampler: Any, count: int, storage: Any = None) -> list[dict[str, Any]]:
    """``count`` trials, told five at a time, so that others run while one is asked; their parameters."""
    study = optuna.create_study(storage=storage, sampler=sampler, directions=["minimize", "maximize"])
    for _ in range(count // 5):
        for trial in [study.ask(dict(SPACE)) for _ in range(5)]:
            x, y = trial.params["x"], trial.params["y"]
            study.tell(trial, (x + 0.1 * y, 1 - (1 - x) ** 2 - 0.2 * y - 1e-4 * trial.params["k"]))
    return [trial.params for trial in study.get_trials(deepcopy=False)]


def test_log_tails_by_scipy_are_optunas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.concatenate([np.linspace(-60, 12, 721), [-1e3, -1e-9, 0.0, 1e-9, 40.0]])
    own = np.array([_truncnorm._log_ndtr_single(float(value)) for value in values])
    monkeypatch.setattr(_truncnorm, "_log_ndtr", None)
    use_fast_tails()
    np.testing.assert_allclose(_truncnorm._log_ndtr(values), own, rtol=1e-9, atol=1e-15)


def test_log_masses_by_scipy_are_optunas_own() -> None:
    ends = np.concatenate([np.linspace(-40, 40, 81), [-1e-3, 0.0, 1e-3]])
    a, b = (grid.ravel() for grid in np.meshgrid(ends, ends))
    a, b = a[a < b], b[a < b]
    own = _OPTUNAS_LOG_MASS(a, b)
    np.testing.assert_allclose(log_mass(a, b), own, rtol=1e-9, atol=1e-12)


def test_suggestions_are_those_of_plain_tpe(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = search(make_sampler("tpe", seed=3, startup_trials=5), 40)
    slow_tails = np.frompyfunc(_truncnorm._log_ndtr_single, 1, 1)
    plain = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=5, seed=3)
    monkeypatch.setattr(_truncnorm, "_log_ndtr", lambda values: slow_tails(values).astype(float))
    monkeypatch.setattr(_truncnorm, "_log_gauss_mass", _OPTUNAS_LOG_MASS)
    for mine, theirs in zip(fast, search(plain, 40), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_a_history_longer_than_the_search_changes_nothing() -> None:
    whole, bounded = (
        search(make_sampler("tpe", seed=1, startup_trials=5, history=history), 40) for history in (None, 1000)
    )
    assert whole == bounded


def test_tpe_learns_from_the_newest_trials_those_on_the_front_and_those_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[int]] = []
    relative = optuna.samplers.TPESampler._sample_relative

    def spy(self: Any, study: Any, trial: Any, space: Any) -> Any:
        seen.append([item.number for item in study._get_trials(deepcopy=False, states=None)])
        return relative(self, study, trial, space)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample_relative", spy)
    study = optuna.create_study(
        sampler=RecentTPE(3, multivariate=True, n_startup_trials=2, seed=0), directions=["minimize", "maximize"]
    )
    values = [(0.0, 0.5), (0.4, 0.4), (0.9, 1.0), (0.5, 0.5), (0.6, 0.6), (0.7, 0.3), (0.8, 0.2)]
    for value in values:  # 0, 2 and 4 are on the front; 4, 5 and 6 the newest
        study.tell(study.ask(SPACE), value)
    study.ask(SPACE)
    study.ask(SPACE)
    assert seen[-1] == [0, 2, 4, 5, 6, 7, 8]


def test_a_dropped_setting_is_never_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 trials four belong to the good ones; two were measured, and one of these broke a constraint."""
    built: list[tuple[bool, set[TrialState], int]] = []
    build = optuna.samplers.TPESampler._build_parzen_estimator

    def spy(self: Any, study: Any, space: Any, trials: Any, handle_below: bool) -> Any:
        built.append((handle_below, {trial.state for trial in trials}, len(trials)))
        return build(self, study, space, trials, handle_below)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_build_parzen_estimator", spy)
    sampler = RecentTPE(100, multivariate=True, n_startup_trials=2, seed=0)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "maximize"])
    for number in range(40):
        trial = study.ask(SPACE)
        if number < 2:
            study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINT, number - 0.5)
            study.tell(trial, (0.1, 0.9))
        else:
            study.tell(trial, state=TrialState.PRUNED)
    study.ask(SPACE)
    (_, good, n_good), (_, bad, n_bad) = built[-2:]
    assert good == {TrialState.COMPLETE}
    assert TrialState.PRUNED in bad
    assert (n_good <= 2, n_good + n_bad) == (True, 40)


@pytest.mark.parametrize(("direction", "best"), [("minimize", 1), ("maximize", 3)])
def test_of_one_objective_the_best_trial_is_remembered(direction: str, best: int) -> None:
    sampler = RecentTPE(3, multivariate=True, n_startup_trials=2, seed=0)
    study = optuna.create_study(sampler=sampler, direction=direction)
    for value in (0.4, 0.1, 0.5, 0.9, 0.3, 0.6, 0.2):
        study.tell(study.ask(SPACE), value)
    study.ask(SPACE)
    assert sampler._front_of(study) == [best]


def test_a_front_known_from_a_storage_is_the_one_that_was_told() -> None:
    storage = optuna.storages.InMemoryStorage()
    told = RecentTPE(100, n_startup_trials=5, seed=0)
    search(told, 30, storage)
    study = optuna.load_study(study_name=None, storage=storage)
    found = RecentTPE(100, n_startup_trials=5, seed=1)
    assert found._front_of(study) == told._front_of(study)
    assert set(found._front_of(study)) == {trial.number for trial in study.best_trials}


def test_while_many_trials_run_a_model_serves_a_tenth_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = optuna.samplers.TPESampler._build_parzen_estimator

    def spy(self: Any, study: Any, space: Any, trials: Any, handle_below: bool) -> Any:
        built.append(len(trials))
        return build(self, study, space, trials, handle_below)

    monkeypatch.setattr(optuna.samplers.TPESampler, "_build_parzen_estimator", spy)
    study = optuna.create_study(
        sampler=make_sampler("tpe", seed=0, startup_trials=5, history=None), directions=["minimize", "maximize"]
    )
    for number in range(10):
        study.tell(study.ask(SPACE), (number / 10, number / 10))
    before = len(built)
    params = [tuple(study.ask(SPACE).params.values()) for _ in range(19)]
    assert len(built) == before + 2 * 19, "below 20 running each ask has a model of its own, of good and bad trials"
    params += [tuple(study.ask(SPACE).params.values()) for _ in range(31)]  # 20 to 50 running
    assert 2 * 10 <= len(built) - before - 2 * 19 <= 2 * 17
    assert len(set(params)) == 50
    for settings in params:
        for value, distribution in zip(settings, SPACE.values(), strict=True):
            assert distribution._contains(distribution.to_internal_repr(value))


class Line:
    """An estimator whose candidates are the numbers 0, 1, 2, ... with given log densities."""

    def __init__(self, log_density: Callable[[np.ndarray], np.ndarray]) -> None:
        self.log_density = log_density

    def sample(self, _: np.random.RandomState, size: int) -> dict[str, np.ndarray]:
        return {"x": np.arange(size, dtype=float)}

    def log_pdf(self, drawn: dict[str, np.ndarray]) -> np.ndarray:
        return self.log_density(drawn["x"])


@pytest.mark.parametrize("left", [1, 3, DRAWN_TOGETHER + 2])
def test_each_ask_of_a_shared_model_gets_the_best_of_its_own_candidates(left: int) -> None:
    good, bad = Line(lambda x: np.where(x % 5 == 2, 1.0, 0.0)), Line(lambda x: np.where(x % 5 == 2, 0.5, 0.0))
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1000)}
    model, generator = _Model(space, good, bad, candidates=5, left=left), np.random.RandomState(0)  # type: ignore[arg-type]
    asked = [model.next(generator) for _ in range(left)]
    assert model.next(generator) is None
    found = sorted(settings["x"] for settings in asked if settings is not None)
    together = [5.0 * number + 2 for number in range(min(left, DRAWN_TOGETHER))]
    again = [5.0 * number + 2 for number in range(left - len(together))]
    assert found == sorted(together + again)


def test_a_history_is_tpes_alone() -> None:
    assert SearchSpec(history=500).history == 500
    with pytest.raises(ValueError, match="no meaning with sampler nsga2"):
        SearchSpec(sampler="nsga2", history=500)


def test_the_journal_is_optunas_and_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_: int) -> None:
        raise AssertionError("fsync")

    monkeypatch.setattr("os.fsync", waits)
    params = search(optuna.samplers.RandomSampler(seed=0), 10, open_storage("journal", tmp_path))
    path = tmp_path / "optuna.journal"
    theirs = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    (study,) = optuna.get_all_study_summaries(theirs)
    loaded = optuna.load_study(study_name=study.study_name, storage=theirs).trials
    assert [trial.params for trial in loaded] == params
    assert {trial.state for trial in loaded} == {TrialState.COMPLETE}
    assert not path.with_name("optuna.journal.lock").exists()
    assert sum(1 for _ in Journal(path).read_logs(0)) == path.read_bytes().count(b"\n")


def test_every_sampler_that_ships_can_search_for_two_objectives() -> None:
    for name in SAMPLERS.names():
        check_sampler(name)


@pytest.mark.usefixtures("_as_before")
def test_a_sampler_for_one_objective_is_refused_before_any_work(tmp_path: Path) -> None:
    load([foreign.put(tmp_path, "plug_cma.py", foreign.sampler("one_only", "CmaEsSampler"))])
    with pytest.raises(SpecError, match=r"sampler one_only cannot search for two objectives .*: \w+: .*") as caught:
        make_spec({**TINY, "search": {"sampler": "one_only"}})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_as_before")
def test_a_sampler_from_outside_is_known_to_the_spec(tmp_path: Path) -> None:
    load([foreign.put(tmp_path, "plug_draws.py", foreign.sampler("draws_b"))])
    assert make_spec({**TINY, "search": {"sampler": "draws_b"}}).search.sampler == "draws_b"
    with pytest.raises(SpecError, match="no meaning with sampler draws_b"):
        make_spec({**TINY, "search": {"sampler": "draws_b", "history": 500}})
