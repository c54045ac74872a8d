"""A storage that was left between two writes: what was asked goes on as it is, and nothing that waits is lost."""

from __future__ import annotations

from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.plan.jobs import Search
from study.search.optuna_search import OptunaSearch
from study.search.warm_start import WarmPoint
from tests.study.search.test_optuna_search import LINE

WARM = (WarmPoint({"x": 0.1, "y": 0.1}, "elsewhere"), WarmPoint({"x": 0.2, "y": 0.2}, "elsewhere"))
BEGUN = {"fixed": 7, "x": 0.1, "y": 0.1}
ID = "badnets/toy/0001"


def two_cells(storage: InMemoryStorage) -> OptunaSearch:
    search = Search("badnets/toy", "toy", (0, 1), LINE, {"fixed": 7})  # type: ignore[arg-type]
    options = {"study_name": "toy", "sampler": "tpe", "seed": 0, "startup_trials": 4, "target": 12}
    return OptunaSearch(search, storage, warm=WARM, **options)  # type: ignore[arg-type]


def left() -> InMemoryStorage:
    """The published point and two warm ones wait; that one of them was asked, the storage has not heard."""
    storage = InMemoryStorage()
    two_cells(storage).resume({}, {})
    return storage


def test_a_begun_setting_goes_on_with_its_own_parameters_and_the_points_that_wait_are_asked() -> None:
    search = two_cells(left())
    assert search.resume({}, {ID: BEGUN}) == [(ID, BEGUN)]
    search.tell(ID, (0.0, 0.99))
    (told,) = (trial for trial in search.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE)
    assert (told.params, told.values, told.user_attrs["id"]) == ({"x": 0.1, "y": 0.1}, [0.0, 0.99], ID)
    asked = [search.ask() for _ in range(2)]
    settings = [one[1] for one in asked if one is not None]
    assert settings == [{"fixed": 7, "x": 0.5, "y": 0.25}, {"fixed": 7, "x": 0.2, "y": 0.2}], "published, then warm"


def test_a_point_that_waits_under_an_id_is_the_setting_with_that_id() -> None:
    """Its id was written, that it runs was not; the ledger has one of its two rows."""
    storage = left()
    waiting = two_cells(storage).study.get_trials(deepcopy=False)[1]
    storage.set_trial_user_attr(waiting._trial_id, "id", ID)
    search = two_cells(storage)
    assert search.resume({}, {ID: BEGUN}) == [(ID, BEGUN)]
    ids = [one[0] for one in (search.ask() for _ in range(4)) if one is not None]
    assert ID not in ids
    assert len(set(ids)) == 4
