"""Simulated searches: the table, the surrogate, virtual time, and what is said of them. All rows are made up."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage

from study.plan.jobs import make_plan
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.simulate.clock import LedgerInMemory, Oracle, run_in_virtual_time
from study.simulate.command import run_simulation
from study.simulate.dependence import dependence
from study.simulate.grid import measure_grid, parse_grid
from study.simulate.runs import Question, check, parse_variants, run_once, simulate
from study.simulate.surrogate import Surrogate, fit
from study.simulate.table import Table, _choice, encode, export, read_table
from study.spec.load import load_spec
from study.spec.yaml_io import SpecError
from tests.study.commands import assert_refused, invoke
from tests.study.simulate.made_up import BEFORE, finished_study
from tests.study.tiny import tiny_spec

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attacks, 60 settings, two defenders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        return finished_study(tmp_path_factory.mktemp("made_up") / "study", "defense_seeds=[0, 1]", noise=0.02)


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return read_table([folder])


@pytest.fixture(scope="module")
def surrogates(table: Table) -> dict[str, Surrogate]:
    return fit(table, noise=True)


@pytest.fixture
def ask(table: Table, surrogates: dict[str, Surrogate]) -> Question:
    return Question(table, surrogates, parse_variants("random"), 12, 2, 1, "attack", noise=False)


# -- the table --------------------------------------------------------------------------------------------------------


def test_a_table_holds_each_setting_on_each_cell_and_its_means(table: Table) -> None:
    assert table.attacks == ["badnets", "blended"]
    assert len(table.frame) == 60 * 2 * 2
    rows, means = table.frame[table.frame["attack"] == "badnets"], table.means("badnets")
    first = rows[rows["setting"] == 0]
    assert len(means) == 60
    assert means["asr"][0] == pytest.approx(first["asr"].mean())
    assert first["asr"].iloc[0] - first["asr"].iloc[1] == pytest.approx(0.04)
    assert means["epochs"][0] == pytest.approx(27 * 2 * 500 / 1000)  # the published point: 1000 steps of 27 of 1000
    assert means["accuracy_before"].tolist() == pytest.approx([BEFORE] * 60)


def test_parameters_lie_in_the_unit_cube_on_their_own_scale() -> None:
    log = encode(FloatDistribution(0.01, 1.0, log=True), [0.01, 0.1, 1.0])
    assert log.ravel() == pytest.approx([0.0, 0.5, 1.0])
    assert encode(CategoricalDistribution(["a", "b"]), ["b", "a"]).tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert encode(FloatDistribution(2.0, 2.0), [2.0]).tolist() == [[0.0]]


def test_an_exported_table_is_read_back_as_it_was(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path)
    again = read_table([tmp_path / "table.json"])
    pd.testing.assert_frame_equal(again.frame, table.frame)
    assert (again.spec, again.label, again.samplers) == (table.spec, table.label, table.samplers)
    about = json.loads((tmp_path / "table.json").read_text())
    assert about["space"]["lr_max1"] == {"type": "real", "low": 0.01, "high": 2.0, "scale": "log"}
    assert set(about["columns"]) | set(about["space"]) == set(table.frame.columns)


@pytest.mark.parametrize("choices", [[0, 0.5, 1], [None, 1.0, 5.0], ["1", "a"], [True, False]])
def test_choices_come_back_from_a_csv_file_as_they_were(choices: list[Any]) -> None:
    read = pd.read_csv(io.StringIO(pd.DataFrame({"choice": choices}).to_csv(index=False)))
    back = [_choice(value, choices) for value in read["choice"]]
    assert back == choices
    assert list(map(type, back)) == list(map(type, choices))


def test_an_exported_table_does_not_say_where_a_machine_keeps_its_files(table: Table, tmp_path: Path) -> None:
    spec = table.spec.model_copy(update={"store": Path("/home/me/victims"), "data_root": Path("/home/me/data")})
    export(dataclasses.replace(table, spec=spec), tmp_path)
    assert "/home/me" not in (tmp_path / "table.json").read_text()


def test_ledgers_of_one_space_are_one_table(folder: Path, table: Table, tmp_path: Path) -> None:
    export(table, tmp_path)
    both = read_table([folder / "trials.jsonl", tmp_path / "table.json"])
    assert both.frame["setting"].nunique() == 120
    assert len(both.means("badnets")) == 120


@pytest.mark.parametrize(
    ("assignments", "named"),
    [
        (("search.ranges.super_ft.iterations=[20, 600]",), ("two spaces", "iterations", "high=600", "high=500")),
        (("width=3",), ("width differs",)),
        (("defense.super_ft.batch_size=32",), ("other settings of super_ft are fixed",)),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    other = finished_study(tmp_path / "other", *assignments, trials=3)
    with pytest.raises(SpecError) as caught:
        read_table([folder, other])
    assert all(text in str(caught.value) for text in named), caught.value


# -- the surrogate ----------------------------------------------------------------------------------------------------


def test_a_surrogate_knows_a_smooth_problem_and_says_how_well(table: Table, surrogates: dict[str, Surrogate]) -> None:
    """60 points of a function of two of four parameters: most of the variance, but by far not all, can be learned."""
    for one in surrogates.values():
        assert 0.5 < one.errors["asr"]["r2"] < 1.0
        assert 0.0 < one.errors["asr"]["mae"] < 0.2
    means = table.means("badnets")
    x = table.encoded(means.iloc[[7]])
    assert surrogates["badnets"].answer(x).asr == pytest.approx(means["asr"][7], abs=0.02)


def test_an_answer_is_what_the_forest_predicts(table: Table, surrogates: dict[str, Surrogate]) -> None:
    """The trees are asked by themselves, which is quicker; the value must be scikit-learn's own."""
    one, x = surrogates["blended"], table.encoded_params({**table.search.space.paper_params(), "lr_max1": 0.33})
    forest, centre, scale = one._forests["asr", "clean_accuracy"]
    asr, accuracy = forest.predict(np.asarray(x, dtype=np.float32))[0] * scale + centre
    answer = one.answer(x)
    assert (answer.asr, answer.clean_accuracy) == (pytest.approx(asr), pytest.approx(accuracy))


def test_noise_is_what_cells_differ_by_and_the_same_for_all_samplers(
    table: Table, surrogates: dict[str, Surrogate]
) -> None:
    """Both cells lie 0.02 from their mean, or less where the ASR ends at 0 or 1; of two cells that is sqrt(2) times as
    much."""
    one, params = surrogates["badnets"], {**table.search.space.paper_params(), "lr_max1": 0.03}
    x = table.encoded_params(params)
    true = one.answer(x)
    told = [one.noisy(true, x, seed, params) for seed in range(20)]
    deviations = [abs(answer.asr - true.asr) for answer in told]
    assert max(deviations) == pytest.approx(0.02 * 2**0.5)
    assert len({answer.asr > true.asr for answer in told}) == 2
    assert told == [one.noisy(true, x, seed, params) for seed in range(20)]


# -- virtual time -----------------------------------------------------------------------------------------------------


def test_searches_run_through_the_studys_own_driver(ask: Question) -> None:
    """Every row that a study would write is there: the published point first, each setting once, E billed."""
    plan = ask.plan(ask.variants[0], 0)
    driver = Driver(plan, LedgerInMemory(), open_searches(plan, InMemoryStorage()))
    traces = run_in_virtual_time(driver, Oracle(ask.table, ask.surrogates, None), slots=1)
    rows = driver.ledger.rows()
    assert driver.finished
    assert len(rows) == 2 * 12
    assert [row["published"] for row in rows[:2]] == [True, True]
    mine = [row for row in rows if row["search"] == "badnets/super_ft"]
    trace = traces["badnets/super_ft"]
    assert trace.epochs == pytest.approx(np.cumsum([row["charged_epochs"] for row in mine]))
    assert trace.hypervolume[-1] == pytest.approx(driver.fronts["badnets/super_ft"].hypervolume)
    assert trace.hypervolume == sorted(trace.hypervolume)


def test_virtual_time_is_shared_by_the_slots(ask: Question) -> None:
    """Random settings do not depend on what is known, so more slots finish the same work sooner, and no sooner than
    the work divided by the slots."""
    alone, four = (run_once(replace(ask, slots=slots), 0, 0) for slots in (1, 4))
    ends = [max(trace.seconds[-1] for trace in traces.values()) for traces in (alone, four)]
    assert ends[0] / 4 <= ends[1] < ends[0] / 2
    assert [trace.epochs[-1] for trace in four.values()] == pytest.approx([t.epochs[-1] for t in alone.values()])


def test_a_setting_over_all_attacks_counts_once(ask: Question) -> None:
    (trace,) = run_once(replace(ask, per="all"), 0, 0).values()
    assert len(trace.hypervolume) == 12


def test_under_noise_true_values_are_counted(ask: Question) -> None:
    told = run_once(replace(ask, noise=True), 0, 0)
    calm = run_once(ask, 0, 0)
    for label, trace in told.items():  # random: the same settings, of which noise may hide some from the front
        assert trace.hypervolume[-1] <= calm[label].hypervolume[-1] + 1e-12


def test_the_same_question_has_the_same_answer_in_new_processes(ask: Question) -> None:
    question = replace(ask, variants=parse_variants("tpe:startup=qmc"), trials=8, seeds=1)
    assert simulate(question, 1, lambda *_: None) == simulate(question, 2, lambda *_: None)


def test_a_warm_start_takes_the_fronts_of_the_other_attacks(ask: Question) -> None:
    question = replace(ask, variants=parse_variants("random,random:warm_start=others"), trials=8)
    check(question)
    cold, warm = (run_once(question, place, 0) for place in (0, 1))
    for label in cold:  # the fronts of both made-up attacks lie in the same corner
        assert warm[label].hypervolume[3] > cold[label].hypervolume[3]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_too_few_settings_are_refused_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    small = finished_study(tmp_path / "small", trials=6)
    assert_refused(invoke("simulate", small), "6 measured settings of super_ft on badnets", "at least 50")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--samplers", "tpe,bohb"), ("--samplers bohb", "unknown sampler")),
        (("--samplers", "tpe,tpe"), ("twice",)),
        (("--samplers", "tpe:pace=3"), ("--samplers tpe:pace=3", "unknown setting 'pace=3'", "startup")),
        (("--samplers", "tpe:startup=sobol"), ("search.startup", "sobol")),
        (("--samplers", "random:accuracy_floor=0.02"), ("accuracy_floor", "no constraints")),
        (("--samplers", "tpe:accuracy_floor=0.0001"), ("accuracy_floor 0.0001", "kept by no setting")),
        (("--samplers", "tpe:warm_start=others", "--per", "all"), ("warm start", "--per attack")),
        (("--grid", "lr_max1=0.1,9"), ("--grid", "lr_max1 = 9", "outside")),
        (("--grid", "lr=0.1"), ("unknown parameter 'lr'", "lr_max1")),
        (("--defense", "ft"), ("does not search 'ft'", "super_ft")),
    ],
)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, options: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(invoke("simulate", folder, "--out", tmp_path / "out", "--jobs", 1, *options), *named)
    assert not (tmp_path / "out").exists()


def test_a_study_of_the_worst_case_is_not_simulated_by_means(table: Table) -> None:
    worst = table.spec.model_copy(update={"search": table.spec.search.model_copy(update={"aggregate": "worst"})})
    variants = parse_variants("tpe,random")
    with pytest.raises(SpecError, match="this study took the attacks together by worst; give --per attack"):
        check(Question(replace(table, spec=worst), {}, variants, 10, 2, 1, "all", noise=False))


def test_a_place_that_is_no_table_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert_refused(invoke("simulate", tmp_path / "none"), "no such file or folder")
    assert_refused(invoke("simulate", tmp_path), "study.yaml")
    assert_refused(invoke("simulate", tmp_path / "other.json"), "no table of superft simulate")
    assert_refused(invoke("simulate", folder, "--out", folder), "holds a study")


def test_the_searches_of_a_sweep_are_no_table(tmp_path: Path) -> None:
    swept = tmp_path / "swept"
    swept.mkdir()
    (swept / "study.yaml").write_text(tiny_spec("sweep.clean_fraction=[0.1, 0.2]").to_yaml())
    assert_refused(invoke("simulate", swept), "sweeps clean_fraction", "run one combination by itself")


def test_a_table_from_a_stranger_runs_no_code(table: Table, tmp_path: Path) -> None:
    export(table, tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    about = json.loads((tmp_path / "table.json").read_text())
    about["study"]["plugins"] = ["evil.py"]
    (tmp_path / "table.json").write_text(json.dumps(about))
    with pytest.raises(SpecError, match=r"table.json names the plug-in evil.py, which is not loaded"):
        read_table([tmp_path / "table.json"])


@pytest.mark.parametrize("folder", ["/proc/self/cwd", "/dev/fd"])
def test_a_study_from_a_stranger_runs_no_code_that_lies_beside_it(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is absolute, and does not lie in the study's folder."""
    (tmp_path / "study").mkdir()
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    spec = yaml.safe_load(tiny_spec().to_yaml())
    spec["plugins"] = [{"module": "evil", "path": f"{folder}/evil.py"}]
    (tmp_path / "study" / "study.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.chdir(tmp_path)
    for command in ("show", "front", "report", "cite"):
        assert_refused(invoke(command, "study"), "names the plug-in", "/evil.py")


def test_noise_needs_settings_that_were_measured_twice(
    folder: Path, tmp_path: Path, table: Table, surrogates: dict[str, Surrogate]
) -> None:
    once = replace(table, frame=table.frame[table.frame["defense_seed"] == 0])
    with pytest.raises(SpecError, match="no setting was measured under two seeds on badnets"):
        fit(once, noise=True)


# -- what is said -----------------------------------------------------------------------------------------------------


def test_the_command_says_and_writes_what_was_found(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = invoke(
        *("simulate", folder, "--samplers", "tpe,random", "--trials", 15, "--seeds", 2, "--slots", 2, "--jobs", 1),
        *("--grid", "lr_max1=0.1,0.2,0.3,0.4,0.5", "--noise", "--out", out),
    )
    assert said.exit_code == 0, said.output
    assert "4 of 4 simulated studies" in said.stderr
    for text in ("ASR error", "tpe - random", "to corner", "grid: 5 settings", "fewer than 7 seeds none"):
        assert text in said.stdout
    result = json.loads((out / "simulation.json").read_text())
    for name in ("tpe", "random"):
        curve = result["samplers"][name]["hypervolume"]["over_trials"]
        assert len(curve["mean"]) == 15
        assert all(
            low <= mean <= high for low, mean, high in zip(curve["low"], curve["mean"], curve["high"], strict=True)
        )
    assert set(result["attainment"]) == {"badnets/super_ft", "blended/super_ft"}
    for name in ("hypervolume.png", "attainment.png", "dependence.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(read_table([out / "table.json"]).frame) == 240


def test_a_grid_is_what_its_settings_come_to(table: Table, surrogates: dict[str, Surrogate]) -> None:
    settings = parse_grid(table, ["lr_max1=0.1,0.5", "iterations=100,500"])
    assert [(one["lr_max1"], one["iterations"]) for one in settings] == [(0.1, 100), (0.1, 500), (0.5, 100), (0.5, 500)]
    assert {one["lr_base"] for one in settings} == {3e-4}
    grid = measure_grid(table, surrogates, settings, "attack")
    best = max(
        (1 - one.asr) * one.clean_accuracy
        for one in (surrogates["badnets"].answer(table.encoded_params(params)) for params in settings)
    )
    assert grid.trials == 4
    assert grid.targets["hypervolume"]["badnets/super_ft"] >= best


def test_dependence_is_on_the_two_parameters_that_matter(table: Table, surrogates: dict[str, Surrogate]) -> None:
    """The made-up ASR falls with the rate and the length of the first phase, and depends on nothing else."""
    found = dependence(table, surrogates)
    assert found is not None
    assert found.names == ("lr_max1", "iterations")
    assert (found.values[0][0], found.values[0][-1]) == (pytest.approx(0.01), pytest.approx(2.0))
    asr = found.rates["badnets"]["asr"]
    assert asr[0, 0] > asr[0, -1] > asr[-1, -1]
    assert asr[0, 0] > asr[-1, 0] > asr[-1, -1]


def test_the_shipped_table_recipe_has_no_adaptive_bias() -> None:
    spec = load_spec("table-digits")
    assert (spec.search.sampler, spec.search.startup) == ("random", "qmc")
    assert spec.search.startup_trials * 2 == spec.search.trials == 600
    (search,) = make_plan(spec).searches
    assert len({cell.attack for cell in search.cells}) == 3


def test_a_sampler_of_ones_own_is_compared_in_new_processes(folder: Path, tmp_path: Path) -> None:
    sampler = tmp_path / "frugal.py"
    sampler.write_text(
        "from study.spec.samplers import register\n"
        "@register('frugal', 'TPE after one random setting')\n"
        "def frugal(*, seed, startup_trials):\n"
        "    from optuna.samplers import TPESampler\n"
        "    return TPESampler(seed=seed, n_startup_trials=1)\n"
    )
    asked = ("--samplers", "frugal,random", "--trials", "4", "--seeds", "2", "--jobs", "2", "--out", tmp_path / "out")
    assert_refused(invoke("simulate", folder, *asked), "--samplers frugal", "unknown sampler")
    told = invoke("simulate", folder, *asked, "--plugin", sampler)
    assert told.exit_code == 0, told.output
    assert set(json.loads((tmp_path / "out" / "simulation.json").read_text())["samplers"]) == {"frugal", "random"}


def test_the_python_call_needs_no_command(folder: Path, tmp_path: Path) -> None:
    text = run_simulation(
        [folder],
        samplers="qmc,random",
        trials=5,
        seeds=2,
        slots=1,
        per="all",
        defense="super_ft",
        noise=False,
        grid=(),
        out=tmp_path / "out",
        jobs=1,
    )
    assert "one search over all attacks" in text
