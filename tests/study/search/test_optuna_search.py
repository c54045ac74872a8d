"""A search starts at the published point, evaluates nothing twice, and survives whatever its driver was killed at."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces.space import Space, get_space
from study.plan.jobs import Search, make_plan
from study.record.optuna_storage import Journal, open_storage
from study.results.scores import WORST
from study.search.optuna_search import OptunaSearch, open_searches
from study.search.optuna_study import space_hash
from study.spec.samplers import make_sampler
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from trainables.registry import SettingError

LINE = Space({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}, {"x": 0.5, "y": 0.25})
GRID = Space(
    {"k": IntDistribution(1, 3), "kind": CategoricalDistribution(["a", "b"]), "z": FloatDistribution(1.0, 1.0)},
    {"k": 2, "kind": "b", "z": 1.0},
)


def make(
    storage: BaseStorage,
    space: Space = LINE,
    *,
    target: int = 12,
    sampler: str = "tpe",
    startup: int = 4,
    seed: int = 0,
    name: str = "toy",
) -> OptunaSearch:
    search = Search("badnets/toy", "toy", (0,), space, {"fixed": 7})
    return OptunaSearch(
        search, storage, study_name=name, sampler=sampler, seed=seed, startup_trials=startup, target=target
    )


def toy(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Two objectives in conflict along x; y only costs."""
    x, y = settings.get("x", 0.5), settings.get("y", 0.5)
    return min(1.0, (1 - x) ** 2 + 0.3 * y), max(0.0, 1 - x**2 - 0.3 * y)


def run(search: OptunaSearch, evaluate: Callable[[Mapping[str, Any]], tuple[float, float] | None] = toy) -> list[str]:
    """Ask and tell until there is no more; the ids in order."""
    ids = []
    while (asked := search.ask()) is not None:
        search.tell(asked[0], evaluate(asked[1]))
        ids.append(asked[0])
    return ids


def trials(search: OptunaSearch) -> list[FrozenTrial]:
    return search.study.get_trials(deepcopy=False)


def running(search: OptunaSearch) -> list[int]:
    return [trial.number for trial in trials(search) if trial.state == TrialState.RUNNING]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed survives a killed process; waiting for the disk would only make the tests slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=["journal", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], BaseStorage]:
    """Opens the same storage as a new process would."""
    storage = "journal" if request.param == "journal" else f"sqlite:///{tmp_path}/optuna.db"
    return lambda: open_storage(storage, tmp_path)


# -- trial 0 and samplers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_runs_two_objectives_from_the_published_point(sampler: str) -> None:
    search = make(InMemoryStorage(), sampler=sampler, target=8)
    search.resume({}, {})
    assert search.ask() == ("badnets/toy/0000", {"fixed": 7, "x": 0.5, "y": 0.25})
    search.tell("badnets/toy/0000", (0.2, 0.9))
    assert run(search) == [f"badnets/toy/{number:04d}" for number in range(1, 8)]
    assert [trial.state for trial in trials(search)] == [TrialState.COMPLETE] * 8
    assert trials(search)[0].values == [0.2, 0.9]
    assert len({tuple(trial.params.items()) for trial in trials(search)}) == 8


@pytest.mark.parametrize(("defense", "variant"), [("super_ft", "default"), ("super_ft", "ordered"), ("ft", "default")])
def test_trial_0_of_a_real_space_is_the_published_point(defense: str, variant: str) -> None:
    space = get_space(defense, variant)
    search = OptunaSearch(
        Search(f"badnets/{defense}", defense, (0,), space, {}),
        InMemoryStorage(),
        study_name="s",
        sampler="tpe",
        seed=3,
        startup_trials=4,
        target=3,
    )
    search.resume({}, {})
    first = search.ask()
    assert first is not None
    for key, value in first[1].items():
        assert value == (pytest.approx(space.paper[key], rel=1e-12) if isinstance(value, float) else space.paper[key])


def test_all_searches_of_a_study_go_by_the_same_rules() -> None:
    plan = make_plan(tiny_spec("attacks=[badnets, blended]", "defenses=[super_ft, ft, clp]", "search.ranges={}"))
    rules = {
        (search.sampler, search.seed, search.startup_trials, search.history, search.target)
        for search in open_searches(plan, InMemoryStorage())
    }
    assert rules == {("tpe", 0, 2, None, 4)}
    seeds = {cell.seed for search in plan.searches for cell in search.cells}
    assert seeds == {0}


def test_tpe_learns_from_what_it_is_told() -> None:
    """Both objectives want y = 0: the later suggestions must lie lower than the random ones."""
    search = make(InMemoryStorage(), target=40, startup=10)
    search.resume({}, {})
    run(search)
    y = [trial.params["y"] for trial in trials(search)]
    assert sum(y[20:]) / 20 < 0.7 * sum(y[1:10]) / 9


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(SettingError, match="unknown sampler 'cma'"):
        make_sampler("cma", seed=0, startup_trials=4)


def test_a_seed_beyond_32_bits_is_a_seed() -> None:
    for name in ("tpe", "nsga2", "gp", "random"):
        make_sampler(name, seed=2**63 - 1, startup_trials=4)


def test_the_same_seed_suggests_the_same_settings() -> None:
    first, second, other = (make(InMemoryStorage(), seed=seed) for seed in (5, 5, 6))
    for search in (first, second, other):
        search.resume({}, {})
        run(search)
    assert [t.params for t in trials(first)] == [t.params for t in trials(second)]
    assert [t.params for t in trials(first)] != [t.params for t in trials(other)]


def test_objectives_are_named_for_the_dashboard() -> None:
    search = make(InMemoryStorage())
    assert search.study.metric_names == ["asr", "clean_accuracy"]
    assert search.study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    assert search.study.study_name == "toy/badnets/toy"


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [(math.nan, 0.9), (0.1, math.nan), (math.inf, 0.9), (0.1, -math.inf), (math.nan, math.nan)]
)
def test_values_that_are_not_finite_are_told_as_the_worst_point(values: tuple[float, float]) -> None:
    search = make(InMemoryStorage())
    search.resume({}, {})
    trial_id, _ = search.ask() or ("", {})
    search.tell(trial_id, values)
    assert trials(search)[0].state == TrialState.COMPLETE
    assert tuple(trials(search)[0].values) == WORST == (1.0, 0.0)


def test_a_trial_that_could_not_be_measured_fails_and_counts() -> None:
    search = make(InMemoryStorage(), target=5)
    search.resume({}, {})
    assert len(run(search, lambda _: None)) == 5
    assert [trial.state for trial in trials(search)] == [TrialState.FAIL] * 5


# -- nothing twice ---------------------------------------------------------------------------------------------------


def test_a_space_of_many_points_is_never_taken_for_searched_through() -> None:
    """A new storage beside an old ledger: the sampler would draw what it drew before."""
    first = make(InMemoryStorage(), sampler="random", target=30)
    first.resume({}, {})
    asked = [item for item in (first.ask() for _ in range(30)) if item]
    again = make(InMemoryStorage(), sampler="random", target=40)
    again.resume(dict.fromkeys((item[0] for item in asked), (0.1, 0.9)), dict(asked))
    assert len(run(again)) == 10
    stuck = make(InMemoryStorage(), sampler="random", target=3)
    stuck.resume({}, {})
    stuck.ask()
    stuck.study.sampler = Stubborn()
    assert [(stuck.ask() or ("",))[0] for _ in range(2)] == ["badnets/toy/0001", "badnets/toy/0002"]
    assert isinstance(stuck.study.sampler, Stubborn), "the sampler is only passed over, not replaced"


class Stubborn(optuna.samplers.RandomSampler):
    """Suggests the published point for ever."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return LINE.paper[param_name]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_a_small_space_is_searched_through_without_running_anything_twice(sampler: str) -> None:
    search = make(InMemoryStorage(), GRID, sampler=sampler, target=100, startup=3)
    search.resume({}, {})
    seen: list[str] = []

    def evaluate(settings: Mapping[str, Any]) -> tuple[float, float]:
        seen.append(json.dumps(settings, sort_keys=True))
        return settings["k"] / 10, 0.5

    ids = run(search, evaluate)
    assert len(seen) == len(set(seen)) == 6, "all of 3 x 2 x 1 points, each once"
    assert ids == [f"badnets/toy/{number:04d}" for number in range(6)]
    assert search.exhausted
    assert running(search) == []


def test_the_target_is_met_in_a_space_that_holds_just_that_many_points() -> None:
    space = Space({"k": IntDistribution(1, 40)}, {"k": 1})
    search = make(InMemoryStorage(), space, target=40, startup=5)
    search.resume({}, {})
    assert len(run(search, lambda settings: (settings["k"] / 40, 0.5))) == 40
    assert not search.exhausted


def test_a_repeated_suggestion_is_told_the_known_values() -> None:
    search = make(InMemoryStorage(), GRID, sampler="random", target=6, startup=3)
    search.resume({}, {})
    run(search, lambda settings: (settings["k"] / 10, 0.5))
    repeated = [trial for trial in trials(search) if "repeats" in trial.user_attrs]
    assert repeated, "a random draw of 6 from 6 points without repeats would be a rare accident"
    for trial in repeated:
        assert trial.values == [trial.params["k"] / 10, 0.5]
        assert "id" not in trial.user_attrs


def test_a_suggestion_that_repeats_a_running_one_is_neither_run_nor_left_running() -> None:
    space = Space({"k": IntDistribution(1, 2)}, {"k": 1})
    search = make(InMemoryStorage(), space, target=5, startup=2)
    search.resume({}, {})
    asked = [search.ask() for _ in range(3)]
    assert [item is not None for item in asked] == [True, True, False]
    assert len(running(search)) == 2
    for item in asked[:2]:
        assert item is not None
        search.tell(item[0], (0.5, 0.5))
    assert running(search) == []


def test_a_finished_small_search_stays_small_over_restarts(reopen: Callable[[], BaseStorage]) -> None:
    finished: dict[str, tuple[float, float] | None] = {}
    started: dict[str, Mapping[str, Any]] = {}
    search = make(reopen(), GRID, target=9, startup=3)
    search.resume({}, {})
    while (asked := search.ask()) is not None:
        search.tell(asked[0], (0.1, 0.9))
        finished[asked[0]], started[asked[0]] = (0.1, 0.9), asked[1]
    assert len(finished) == 6
    again = make(reopen(), GRID, target=9, startup=3)
    assert again.resume(finished, started) == []
    assert again.ask() is None
    assert again.exhausted


# -- restarts -------------------------------------------------------------------------------------------------------


def test_a_restarted_sampler_does_not_draw_its_start_up_points_again(reopen: Callable[[], BaseStorage]) -> None:
    finished: dict[str, tuple[float, float] | None] = {}
    started: dict[str, Mapping[str, Any]] = {}
    for _ in range(4):  # four drivers, each killed after three settings, all within start-up
        search = make(reopen(), sampler="random", target=12, startup=12)
        search.resume(finished, started)
        for _ in range(3):
            trial_id, settings = search.ask() or ("", {})
            search.tell(trial_id, toy(settings))
            finished[trial_id], started[trial_id] = toy(settings), settings
    assert len({json.dumps(settings) for settings in started.values()}) == 12
    assert sum(settings["x"] == 0.5 and settings["y"] == 0.25 for settings in started.values()) == 1


def test_running_trials_are_taken_up_under_their_numbers(reopen: Callable[[], BaseStorage]) -> None:
    search = make(reopen())
    search.resume({}, {})
    asked = [search.ask() for _ in range(3)]
    again = make(reopen())
    assert again.resume({}, {}) == asked
    assert again.asked == 3
    for item in asked:
        assert item is not None
        again.tell(item[0], toy(item[1]))
    assert [trial.state for trial in trials(again)] == [TrialState.COMPLETE] * 3
    assert [trial.user_attrs["id"] for trial in trials(again)] == [item[0] for item in asked if item]
    assert (again.ask() or ("",))[0] == "badnets/toy/0003"


def test_what_the_ledger_knows_and_optuna_does_not_is_told(reopen: Callable[[], BaseStorage]) -> None:
    """The driver was killed between its row and its tell."""
    search = make(reopen())
    search.resume({}, {})
    first, second = search.ask(), search.ask()
    assert first is not None
    assert second is not None
    again = make(reopen())
    unfinished = again.resume({first[0]: (0.3, 0.7), second[0]: None}, {first[0]: first[1], second[0]: second[1]})
    assert unfinished == []
    assert [trial.state for trial in trials(again)] == [TrialState.COMPLETE, TrialState.FAIL]
    assert trials(again)[0].values == [0.3, 0.7]


@pytest.mark.parametrize("variant", ["default", "ordered"])
def test_a_deleted_storage_is_rebuilt_from_the_ledger(variant: str, tmp_path: Path) -> None:
    plan_search = Search("badnets/super_ft", "super_ft", (0,), get_space("super_ft", variant), {"batch_size": 64})

    def build(storage: BaseStorage) -> OptunaSearch:
        return OptunaSearch(plan_search, storage, study_name="s", sampler="random", seed=1, startup_trials=4, target=30)

    search = build(InMemoryStorage())
    search.resume({}, {})
    asked = [search.ask() for _ in range(20)]
    # What a ledger gives back: settings after JSON, with every default of the defense beside them.
    started = {item[0]: json.loads(json.dumps({**item[1], "momentum": 0.9, "scope": "all"})) for item in asked if item}
    finished: dict[str, tuple[float, float] | None] = dict.fromkeys(list(started)[:17], (0.2, 0.8))
    finished["badnets/super_ft/0003"] = None
    again = build(open_storage("journal", tmp_path))
    unfinished = again.resume(finished, started)
    assert unfinished == [item for item in asked[17:] if item]
    states = {trial.user_attrs["id"]: trial.state for trial in trials(again)}
    assert list(states.values()).count(TrialState.COMPLETE) == 16
    assert states["badnets/super_ft/0003"] == TrialState.FAIL
    assert len(running(again)) == 3
    for trial_id, _ in unfinished:
        again.tell(trial_id, (0.2, 0.8))
    ids = run(again, lambda _: (0.2, 0.8))
    assert ids == [f"badnets/super_ft/{number:04d}" for number in range(20, 30)]
    assert running(again) == []


def test_an_ordered_point_at_its_border_survives_the_rounding(tmp_path: Path) -> None:
    """lr_max1 / (lr_max1 / ratio) may come out just above the ratio's limit."""
    space = get_space("super_ft", "ordered")
    search = Search("badnets/super_ft", "super_ft", (0,), space, {})
    params = {"max1_over_max2": 1e3, "max2_over_base": 1.0, "iterations": 500}
    rates = [0.01 + 0.00137 * step for step in range(200)]
    points = [search.settings({**params, "lr_max1": rate}) for rate in rates]
    outside = [point for point in points if space.to_params(point)["max1_over_max2"] > 1e3]
    assert outside, "some of 200 quotients are expected to round upwards"
    again = OptunaSearch(search, InMemoryStorage(), study_name="s", sampler="tpe", seed=0, startup_trials=2, target=9)
    started = {f"badnets/super_ft/{number:04d}": point for number, point in enumerate(outside[:2])}
    unfinished = again.resume({"badnets/super_ft/0000": (0.1, 0.9)}, started)
    assert unfinished == [("badnets/super_ft/0001", outside[1])]
    assert [trial.params["max1_over_max2"] for trial in trials(again)[:2]] == [1e3, 1e3]


def test_a_setting_whose_row_was_lost_is_measured_again_under_its_id(reopen: Callable[[], BaseStorage]) -> None:
    search = make(reopen())
    search.resume({}, {})
    asked = [search.ask() for _ in range(3)]
    for item in asked:
        assert item is not None
        search.tell(item[0], toy(item[1]))
    kept = [item for item in asked if item][::2]
    again = make(reopen())
    unfinished = again.resume({item[0]: toy(item[1]) for item in kept}, dict(kept))
    assert unfinished == [asked[1]]
    again.tell(unfinished[0][0], (0.9, 0.9))
    assert trials(again)[1].values == list(toy(unfinished[0][1])), "Optuna keeps what it was told first"
    assert (again.ask() or ("",))[0] == "badnets/toy/0003"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def test_a_kill_at_any_write_to_the_storage_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every log that the journal takes is a point at which the driver may die; each is tried, before and after it."""
    append = Journal.append_logs
    writes, fatal, after = 0, math.inf, False

    def append_or_die(self: Journal, logs: list[dict[str, Any]]) -> None:
        nonlocal writes
        writes += 1
        if writes == fatal and not after:
            raise Killed
        append(self, logs)
        if writes == fatal:
            raise Killed

    monkeypatch.setattr(Journal, "append_logs", append_or_die)

    def study(directory: Path) -> tuple[OptunaSearch, dict[str, Any]]:
        finished: dict[str, Any] = {}
        started: dict[str, Any] = {}

        def drive() -> OptunaSearch:
            search = make(open_storage("journal", directory), target=4, startup=2)
            queue = search.resume(finished, started)
            while queue or (asked := search.ask()) is not None:
                trial_id, settings = queue.pop() if queue else asked  # type: ignore[misc]
                assert trial_id not in finished
                finished[trial_id], started[trial_id] = toy(settings), settings  # the row comes first
                search.tell(trial_id, toy(settings))
            return search

        try:
            return drive(), started
        except Killed:
            return drive(), started

    whole = tmp_path / "whole"
    whole.mkdir()
    study(whole)
    total = writes
    assert total > 20
    for after in (False, True):
        for number in range(1, total + 1):
            directory = tmp_path / f"{number}-{after}"
            directory.mkdir()
            writes, fatal = 0, number
            search, started = study(directory)
            fatal = math.inf
            assert sorted(started) == [f"badnets/toy/{n:04d}" for n in range(4)], (number, after)
            assert running(search) == [], (number, after)
            complete = [t.user_attrs["id"] for t in trials(search) if t.state == TrialState.COMPLETE]
            assert sorted(complete) == sorted(started), (number, after)
            assert sum(s["x"] == 0.5 for s in started.values()) == 1, "the published point, once"
            assert search.study.user_attrs["space"] == space_hash(LINE.distributions)


def test_half_a_line_at_the_end_of_the_journal_is_cut_off(tmp_path: Path) -> None:
    search = make(open_storage("journal", tmp_path))
    search.resume({}, {})
    asked = search.ask()
    journal = tmp_path / "optuna.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"wor')
    again = make(open_storage("journal", tmp_path))
    assert again.resume({}, {}) == [asked]
    again.ask()
    assert journal.read_bytes().startswith(whole)
    assert len(trials(make(open_storage("journal", tmp_path)))) == 2


def test_a_damaged_journal_is_kept_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = make(open_storage("journal", tmp_path))
    search.resume({}, {})
    trial_id, settings = search.ask() or ("", {})
    search.tell(trial_id, (0.1, 0.9))
    journal = tmp_path / "optuna.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    with caplog.at_level(logging.WARNING):
        again = make(open_storage("journal", tmp_path))
    assert "optuna.journal.damaged" in caplog.text
    assert (tmp_path / "optuna.journal.damaged").read_bytes().splitlines()[1] == b"garbage"
    assert again.resume({trial_id: (0.1, 0.9)}, {trial_id: settings}) == []
    assert trials(again)[0].values == [0.1, 0.9]


@pytest.mark.timeout(20)
def test_a_lock_that_a_killed_driver_left_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a relative path Optuna's own lock would be waited for without end."""
    monkeypatch.chdir(tmp_path)
    directory = Path("runs")
    directory.mkdir()
    make(open_storage("journal", directory))
    (directory / "optuna.journal.lock").symlink_to("runs/optuna.journal")
    search = make(open_storage("journal", directory))
    search.resume({}, {})
    assert search.ask() is not None


# -- refusals -------------------------------------------------------------------------------------------------------


def test_a_study_of_another_space_is_refused(reopen: Callable[[], BaseStorage]) -> None:
    make(reopen())
    wider = Space({**LINE.distributions, "x": FloatDistribution(0.0, 2.0)}, LINE.paper)
    with pytest.raises(SpecError, match="another search space; choose another study name"):
        make(reopen(), wider)


def test_a_study_with_other_directions_is_refused(reopen: Callable[[], BaseStorage]) -> None:
    optuna.create_study(study_name="toy/badnets/toy", storage=reopen(), directions=["minimize", "minimize"])
    with pytest.raises(SpecError, match="other directions"):
        make(reopen())


def test_searches_of_one_study_share_a_storage_without_mixing(reopen: Callable[[], BaseStorage]) -> None:
    storage = reopen()
    first, second = make(storage), make(storage, name="other")
    for search in (first, second):
        search.resume({}, {})
    first.ask()
    assert len(trials(first)) == 1
    assert [trial.state for trial in trials(second)] == [TrialState.WAITING]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@127.0.0.1:1/db",
        "postgresql://ann:s3cret@127.0.0.1:notaport/db",
        "nodatabase://ann:s3cret@host/db",
    ],
)
def test_a_database_that_does_not_open_is_named_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        open_storage(url, tmp_path)
    assert str(raised.value).startswith("search.storage: cannot open ")
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search\.storage: cannot open sqlite:.*unable to open"):
        open_storage(f"sqlite:///{tmp_path}/none/optuna.db", tmp_path)


def test_what_failed_and_was_measured_since_is_told_whenever_the_driver_was_killed() -> None:
    """Killed between the row of the second run and the tell."""
    storage = InMemoryStorage()
    search = make(storage)
    search.resume({}, {})
    (first, settings), (failed, others) = (one for _ in range(2) if (one := search.ask()) is not None)
    search.tell(first, (0.5, 0.9))
    search.tell(failed, None)
    make(storage).resume({first: (0.5, 0.9)}, {first: settings})
    again = make(storage)
    assert again.resume({first: (0.5, 0.9), failed: (0.2, 0.8)}, {first: settings, failed: others}) == []
    told = [(t.state, t.values) for t in trials(again) if t.user_attrs.get("id") == failed]
    assert told == [(TrialState.FAIL, None), (TrialState.COMPLETE, [0.2, 0.8])]
    assert again.resume({first: (0.5, 0.9), failed: (0.2, 0.8)}, {first: settings, failed: others}) == []
    assert len(trials(again)) == 3


def test_a_setting_that_failed_and_is_run_again_teaches_the_sampler(reopen: Callable[[], BaseStorage]) -> None:
    search = make(reopen(), target=3)
    search.resume({}, {})
    ids = run(search, lambda settings: None if settings["x"] == LINE.paper["x"] else toy(settings))
    failed = ids[0]
    assert trials(search)[0].state == TrialState.FAIL
    known = {trial.user_attrs["id"]: trial for trial in trials(search)}
    finished = {name: tuple(known[name].values) for name in ids[1:]}
    started = {name: {"fixed": 7, **known[name].params} for name in ids[1:]}
    again = make(reopen(), target=3)
    ((trial_id, settings),) = again.resume(finished, started)  # its failed row was taken out of the ledger
    assert (trial_id, settings) == (failed, {"fixed": 7, **LINE.paper})
    again.tell(trial_id, (0.25, 0.75))
    told = [trial for trial in trials(again) if trial.user_attrs["id"] == failed]
    assert [trial.state for trial in told] == [TrialState.FAIL, TrialState.COMPLETE]
    assert (told[1].values, told[1].params) == ([0.25, 0.75], dict(LINE.paper))
    assert again.ask() is None
