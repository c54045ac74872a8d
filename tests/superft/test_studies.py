"""Claims of `import superft`: light to import, a study on disk as tables and pictures, trials and studies as calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import superft
from study.record.ledger import Ledger
from study.results.fronts import fronts
from study.spec.yaml_io import SpecError
from superft.studies import Study
from tests.study.rows import made_up_study, make_row, point
from tests.study.tiny import TINY, tiny_spec


def saved(folder: Path, rows: list[dict[str, object]]) -> Path:
    """A study folder that holds these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(tiny_spec().to_yaml())
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return superft.load(saved(tmp_path / "one", made_up_study(trials=8)))


def test_importing_it_brings_nothing_heavy() -> None:
    code = "import superft, sys; print(sorted({'torch', 'ray', 'optuna', 'pandas', 'plotly'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


def test_loading_a_study_changes_nothing_and_gives_its_rows(tmp_path: Path) -> None:
    rows = made_up_study(trials=8)
    folder = saved(tmp_path / "one", rows)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    study = superft.load(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert study.trials["trial"].tolist() == [row["trial"] for row in rows]
    assert repr(study) == f"<study tiny in {folder}: {len(rows)} trials>"


def test_the_front_is_that_of_the_report_and_marks_its_trials(study: Study) -> None:
    pd.testing.assert_frame_equal(study.front(), fronts(study.trials))
    assert set(study.front("badnets")["attack"]) == {"badnets"}
    marked = study.trials[study.trials["on_front"].eq(True).fillna(False)]
    assert set(marked["trial"]) == set(study.front()["trial"])
    assert study.trials.loc[study.trials["role"] == "baseline", "on_front"].isna().all()


def test_each_pick_is_a_row_with_its_name(study: Study) -> None:
    chosen = study.picks("badnets")
    front = study.front("badnets")
    for _, member in front.iterrows():
        named = set(filter(None, str(member["picks"]).split(";"))) | ({"knee"} if member["is_knee"] else set())
        assert set(chosen.loc[chosen["trial"] == member["trial"], "pick"]) == named
    assert len(chosen)


def test_the_picture_is_of_one_attack(study: Study) -> None:
    assert {"badnets", "blended"} == set(study.attacks)
    drawn = study.plot("badnets")
    assert any("front" in str(trace.name) for trace in drawn.data)
    with pytest.raises(SpecError, match="name one of the attacks: badnets, blended"):
        study.plot()
    with pytest.raises(SpecError, match=r"no trial of attack 'badnet' in .*did you mean 'badnets'"):
        study.plot("badnet")


def test_the_table_for_a_paper_holds_baselines_published_points_and_picks_in_percent(tmp_path: Path) -> None:
    rows = [make_row("badnets/ft/baseline", asr=0.5, clean_accuracy=0.9, robust_accuracy=0.4)]
    rows += [point(0, 0.25, 0.97, published=True), point(1, 0.05, 0.98), point(2, 0.6, 0.5)]
    study = superft.load(saved(tmp_path / "one", rows))
    table = study.table()
    assert table["point"].tolist() == ["baseline", "published", "pick, at most 1 point lost"]
    assert table["asr"].tolist() == [0.5, 0.25, 0.05]
    text = study.to_latex("badnets")
    assert r"badnets & ft & baseline & 50.0 & 90.0 & 40.0 & ok \\" in text
    assert r"\toprule" in text
    assert r"super\_ft & published & 25.0 & 97.0" in text


def test_settings_over_several_attacks_have_a_front_of_their_own(tmp_path: Path) -> None:
    study = superft.load(saved(tmp_path / "one", made_up_study(trials=6, per="all")))
    assert study.attacks == ["badnets", "blended", "all"]
    marked = study.trials[study.trials["on_front"].eq(True).fillna(False)]
    assert set(marked["trial"]) == set(study.front("all")["trial"])
    # One trial is scored on all attacks: what is picked for one of them, or for all together, is no pick of the others.
    table, picks = study.table(), study.picks()
    drop_1 = picks[picks["pick"] == "drop_1"]
    told = table[table["point"].str.contains("pick")]
    assert sorted(told["attack"]) == sorted(drop_1["attack"])
    assert sorted(told["asr"]) == sorted(drop_1["asr_report"])


def test_a_notebook_shows_how_far_it_is_and_the_table(study: Study, tmp_path: Path) -> None:
    shown = study._repr_html_()
    assert f"{len(study.trials)} trials" in shown
    assert "<table" in shown
    empty = superft.load(saved(tmp_path / "none", []))
    assert "No trial has finished yet" in empty._repr_html_()
    assert empty.front().empty
    assert empty.picks().empty
    assert empty.table().empty
    with pytest.raises(SpecError, match="there is no trial yet"):
        empty.plot()


def test_a_folder_without_a_study_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no study folder: it has no study\.yaml"):
        superft.load(tmp_path)


def test_values_that_no_spec_can_hold_and_wrong_keys_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search\.trials: .* is no value of a spec"):
        superft.run(TINY, tmp_path / "out", changes={"search.trials": object()})
    with pytest.raises(SpecError, match=r"did you mean 'search\.trials'"):
        superft.run(TINY, tmp_path / "out", changes={"search.trails": 4})
    with pytest.raises(SpecError, match=r"unknown setting defense\.super_ft\.lr_max: did you mean 'lr_max"):
        superft.trial("badnets", "super_ft", "digits", settings={"lr_max": 1.0})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_runs_from_a_call_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERFT_STORE", str(tmp_path / "store"))
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    changes = {"search.trials": 2}
    study = superft.run(file, tmp_path / "out", changes=changes)
    assert len(study.trials) == 3
    again = superft.run(TINY, tmp_path / "out", changes=changes)
    pd.testing.assert_frame_equal(again.trials, study.trials)
    conditions = {key: TINY[key] for key in ("image_size", "width", "precision", "victim", "clean_fraction")}
    row = superft.trial(
        "badnets", "super_ft", "digits", settings=TINY["defense"]["super_ft"], changes=conditions, device="cpu"
    )
    first = study.trials[study.trials["role"] == "search"].iloc[0]
    assert row["victim"] == first["victim"]
    assert Ledger.read(tmp_path / "out" / "trials.jsonl").rows()[0]["schema"] == row["schema"]
