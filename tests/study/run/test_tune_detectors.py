"""Detectors are tuned before the trials, on what they would leave out; what was chosen stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.plan.forecast import plan_lines
from study.plan.jobs import Plan, load_data, make_plan
from study.record.detectors import (
    DETECTOR_SETTINGS,
    DETECTORS_FILE,
    CellFinding,
    TunedDetector,
    read_detectors,
    write_detectors,
)
from study.report.detectors import tuned_table
from study.results.left import plan_in
from study.run.tune_detectors import ROUND, DetectorSearch, youden
from study.spec.yaml_io import SpecError
from tests.study.processes import Place, new_place, on_one_core, rows_of
from tests.study.tiny import TINY, make_driver, run, tiny_spec
from trainables.job import Job

AC = ("defenses=[ac]", "search.ranges={}", "defense.super_ft={}", "baselines=[]", "search.trials=5")
LABEL = "badnets/ac"
CHOSEN = {
    "nb_dims": 3, "reducer": "ica", "decision": "relative_size", "size_threshold": 0.4, "silhouette_threshold": 0.2,
}  # fmt: skip
PUBLISHED = {
    "nb_dims": 10, "reducer": "pca", "decision": "smaller", "size_threshold": 0.35, "silhouette_threshold": 0.1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def made_up(job: Job, plan: Plan) -> dict[str, Any]:
    rates = {f"{key}{half}": job.settings["lr"] for key in ("asr", "clean_accuracy") for half in ("", "_search")}
    return {
        **job.cell.columns(), **rates, "status": "ok", **{f"param.{key}": value for key, value in job.settings.items()}
    }  # fmt: skip


def detector_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in CHOSEN}


def test_trial_0_is_the_whole_published_point_and_the_rest_has_the_chosen_detector(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*AC), tmp_path / "trials.jsonl")
    driver.set_detectors({LABEL: CHOSEN})
    assert run(driver, measure=made_up) == 5
    settings = {row["trial"]: row for row in driver.ledger.rows()}
    detectors = [detector_of({key: settings[f"{LABEL}/{n:04d}"][f"param.{key}"] for key in CHOSEN}) for n in range(5)]
    assert detectors == [PUBLISHED] + [CHOSEN] * 4
    rates = [settings[f"{LABEL}/{n:04d}"]["param.lr"] for n in range(5)]
    assert rates[:2] == [0.01, 0.01], "the published rate once with either detector"
    assert len(set(rates[1:])) == 4
    assert [settings[f"{LABEL}/{n:04d}"]["published"] for n in range(5)] == [True] + [False] * 4


def test_where_the_published_detector_is_the_best_nothing_is_asked_twice(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*AC), tmp_path / "trials.jsonl")
    driver.set_detectors({LABEL: PUBLISHED})
    assert run(driver, measure=made_up) == 5
    rates = [row["param.lr"] for row in driver.ledger.rows()]
    assert rates.count(0.01) == 1
    assert len(set(rates)) == 5


@pytest.mark.parametrize("finishes", range(5))
@pytest.mark.parametrize("same_storage", [True, False])
def test_a_search_goes_on_with_the_detector_that_was_chosen(tmp_path: Path, finishes: int, same_storage: bool) -> None:
    """Stopped after any trial, and also where the storage of Optuna was lost: the ledger and the file are enough."""
    spec, storage = tiny_spec(*AC), InMemoryStorage()
    first = make_driver(spec, tmp_path / "trials.jsonl", storage)
    first.set_detectors({LABEL: CHOSEN})
    run(first, finishes=finishes, measure=made_up)
    first.ledger.close()
    write_detectors(tmp_path, [TunedDetector(LABEL, CHOSEN, PUBLISHED, 48, 0.3)])
    plan = plan_in(tmp_path, spec, [])
    again = make_driver(spec, tmp_path / "trials.jsonl", storage if same_storage else None, plan=plan)
    run(again, measure=made_up)
    rows = {row["trial"]: row for row in again.ledger.rows()}
    assert sorted(rows) == [f"{LABEL}/{number:04d}" for number in range(5)]
    found = [{key: row[f"param.{key}"] for key in CHOSEN} for _, row in sorted(rows.items())]
    assert found == [PUBLISHED] + [CHOSEN] * 4
    assert again.finished
    (search,) = again.searches
    states = [trial.state for trial in search.study.get_trials()]
    assert states.count(TrialState.COMPLETE) == 5


def test_only_a_search_over_detector_and_training_has_its_detector_tuned_first() -> None:
    searches = make_plan(tiny_spec(*AC, "defenses=[ac, spectral, super_ft]")).searches
    by_label = {search.label: search for search in searches}
    assert [*by_label[LABEL].space.distributions] == ["lr"]
    assert by_label["badnets/spectral"].published_detector() == {
        "remove_fraction": 0.15, "feature_layer": "stage4_pooled",
    }  # fmt: skip
    assert by_label["badnets/super_ft"].detector is None
    (whole,) = make_plan(tiny_spec(*AC, "search.space.ac=detector")).searches
    assert whole.detector is None
    assert "nb_dims" in whole.space.distributions
    (pinned,) = make_plan(tiny_spec(*AC, "search.ranges.ac.lr=[0.01, 0.01]")).searches
    assert pinned.detector is None, "with one rate left there is nothing to search but the detector"
    (narrow,) = make_plan(tiny_spec(*AC, "search.ranges.ac.nb_dims=[5, 20]")).searches
    assert narrow.detector is not None
    assert narrow.detector.distributions["nb_dims"].high == 20  # type: ignore[attr-defined]


def test_the_plan_says_what_tuning_the_detectors_takes() -> None:
    spec = tiny_spec(*AC, "seeds=[0, 1, 2]")
    (line,) = [line for line in plan_lines(make_plan(spec), *load_data(spec)) if line.startswith("detectors:")]
    assert f"{DETECTOR_SETTINGS} settings" in line
    assert "1.0 E" in line, "three passes forward"
    assert "oracle" in line
    plain = tiny_spec()
    assert not any("detectors:" in line for line in plan_lines(make_plan(plain), *load_data(plain)))


def judge(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Best at 5 dimensions."""
    tpr = 1.0 - abs(settings["nb_dims"] - 5) / 100
    return {"detection_tpr": tpr, "detection_fpr": 0.1, "detection_auroc_target": 0.9}


def tuned(published: bool = True, seed: int = 0, nothing: bool = False) -> tuple[DetectorSearch, TunedDetector]:
    (search,) = make_plan(tiny_spec(*AC, "seeds=[0, 1]")).searches
    one = DetectorSearch(search, search.cells, seed, published)
    while trials := one.propose(ROUND):
        columns = [{} if nothing else judge(one.settings(trial)) for trial in trials]
        one.tell(trials, [columns, columns])
    return one, one.result()


def test_the_best_of_the_proposed_settings_is_chosen_and_the_published_one_is_among_them() -> None:
    one, found = tuned()
    assert found.settings["nb_dims"] == 5
    assert found.tried <= DETECTOR_SETTINGS
    assert found.published == PUBLISHED
    assert [cell.tpr for cell in found.cells_published] == [0.95, 0.95]
    assert [cell.seed for cell in found.cells] == [0, 1]
    value = youden(found.cells)
    assert value == pytest.approx(0.9)
    assert len(one._study.trials) == DETECTOR_SETTINGS


def test_the_same_seed_chooses_the_same_detector_and_another_one_proposes_others() -> None:
    assert tuned()[1] == tuned()[1]
    assert tuned(seed=1)[1].settings != tuned()[1].settings
    assert tuned(published=False)[1].cells_published == ()


def test_without_poison_to_judge_by_the_detector_stays_as_published() -> None:
    _, found = tuned(nothing=True)
    assert (found.settings, found.tried) == (PUBLISHED, 0)
    assert found.error == "no cell has poisoned images to judge it by"


def test_what_was_chosen_is_read_back_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert read_detectors(tmp_path) == {}
    _, found = tuned()
    write_detectors(tmp_path, [found])
    assert read_detectors(tmp_path) == {LABEL: found}
    (tmp_path / DETECTORS_FILE).write_text("[{")
    with pytest.raises(SpecError, match=r"detectors\.json is damaged"):
        read_detectors(tmp_path)


def test_the_report_has_chosen_and_published_detector_side_by_side_with_what_was_known() -> None:
    cells = (CellFinding("badnets", 0, 0, 1.0, 0.02, 0.99), CellFinding("blended", 0, 0, 0.5, 0.02, None))
    found = TunedDetector("all/ac", CHOSEN, PUBLISHED, 48, 0.67, cells, cells)
    best, published = tuned_table([found], "badnets")
    assert (best["detector"], best["knowledge"], best["TPR"], best["E"]) == ("best of 48", "oracle", "100.0 %", "0.67")
    assert (published["detector"], published["knowledge"], published["E"]) == ("as published", "blind", "")
    assert tuned_table([found], "blended")[0]["AUROC within the target class"] == "–"
    assert tuned_table([found], "sig") == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("detectors"), on_one_core()) as made:
        yield made


def detectors_in(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        row["trial"]: {key: row[f"param.{key}"] for key in CHOSEN} for row in rows if row["role"] == "search"
    }  # fmt: skip


@pytest.mark.timeout(400)
def test_a_real_study_tunes_its_detector_once_and_goes_on_with_it(place: Place) -> None:
    changes: dict[str, Any] = {
        "defenses": ["ac"],
        "defense": {"ac": {"epochs": 1}},
        "baselines": [],
        "victim": {**TINY["victim"], "poison_rate": 0.05},
        "width": 4,  # for so little poison to take hold
    }
    search = {"startup_trials": 2}
    spec = place.spec("ac", **changes, search={**search, "trials": 2})
    directory = place.folder / "runs" / "ac"
    first = place.run("run", spec, "--out", directory)
    assert first.code == 0, first.stderr
    assert "detector of badnets/ac, best of" in first.stderr
    chosen = (directory / DETECTORS_FILE).read_bytes()
    one = read_detectors(directory)[LABEL]
    assert one.published == PUBLISHED
    assert one.epochs == pytest.approx(1 / 3), "one pass for all settings"
    best, published = youden(one.cells), youden(one.cells_published)
    assert best is not None
    assert published is not None
    assert best >= published
    rows = rows_of(directory)
    assert detectors_in(rows) == {f"{LABEL}/0000": PUBLISHED, f"{LABEL}/0001": one.settings}
    assert all("features_reused" in row["flags"] for row in rows)
    assert f"best of {one.tried}" in (directory / "report.html").read_text()
    second = place.run("run", place.spec("ac", **changes, search={**search, "trials": 3}), "--out", directory)
    assert second.code == 0, second.stderr
    assert "detector of badnets/ac" not in second.stderr
    assert (directory / DETECTORS_FILE).read_bytes() == chosen
    assert detectors_in(rows_of(directory))[f"{LABEL}/0002"] == one.settings
