"""An aftermath in a study: planned with what it is read against, costed apart, continued, shown."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.plan.costs import aftermath_left, work_left
from study.plan.forecast import plan_lines
from study.plan.jobs import Plan, check_plan, load_data, make_plan
from study.record.columns import to_frame
from study.report.aftermath import TITLES, aftermath_markdown, aftermath_parts, in_words
from study.report.figures.connectivity import connectivity_png
from study.report.figures.reinjection import by_arm, reinjection_png
from study.report.figures.style import GREY
from study.report.write import write_report
from study.results.aftermath import (
    connectivity_curves,
    membership_table,
    reading_order,
    reinjection_curves,
    reinjection_table,
)
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from tests.study.commands import invoke
from tests.study.rows import make_row
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec
from trainables.data.images import DataError
from trainables.evaluation.aftermath.connectivity import summary
from trainables.job import Job

SOME = ("aftermath.reinjection.epochs=2", "aftermath.membership.attacks=[loss]")
BASELINES = "baselines=[ft]"


def test_what_it_is_read_against_is_planned_where_the_spec_does_not_name_it() -> None:
    plan = make_plan(tiny_spec(*SOME, BASELINES))
    assert {job.label for job in plan.baselines} == {
        *("badnets/ft/baseline", "badnets/scratch/baseline"),
        *("badnets/none/baseline", "badnets/none/control"),
    }
    assert all(job.aftermath is not None for job in plan.baselines)
    named = make_plan(tiny_spec(*SOME, "baselines=[none, scratch, ft]"))
    assert {job.label for job in named.baselines} == {job.label for job in plan.baselines}
    without = make_plan(tiny_spec(BASELINES))
    assert [(job.label, job.aftermath) for job in without.baselines] == [("badnets/ft/baseline", None)]


@pytest.mark.parametrize(("trials", "asked"), [("baselines", False), ("all", True)])
def test_searched_settings_have_it_where_the_spec_says_so(trials: str, asked: bool, tmp_path: Path) -> None:
    spec = tiny_spec(*SOME, "baselines=[]", f"aftermath.trials={trials}")
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    seen = dict[str, bool]()

    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        seen[job.role] = job.aftermath is not None
        return made_up_row(job, plan)

    run(driver, measure=measure)
    assert seen == {"baseline": True, "control": True, "search": asked}


def test_its_cost_is_said_apart_and_changes_no_other() -> None:
    spec, plain = tiny_spec(*SOME, "baselines=[none, ft, scratch]"), tiny_spec("baselines=[none, ft, scratch]")
    dataset, _ = load_data(spec)
    plan, before = make_plan(spec), make_plan(plain)
    assert aftermath_left(before, dataset).trials == 0
    own = {item.label: item.epochs for item in work_left(plan, dataset)}
    assert own == {item.label: item.epochs for item in work_left(before, dataset)} | {"badnets/none/control": 0.0}
    work = aftermath_left(plan, dataset)
    # Four models; rates original, 0.01, 0.001 and 5, 10, 50 images, of which 0.001 of 1,297 is one image; 2 epochs of
    # 6 batches of 256 each: 6 * 2 * 6 * 256 / 1,297 E each, and the measurements.
    trained = 4 * 6 * 2 * 6 * 256 / 1297
    assert work.trials == 4
    assert trained < work.epochs < 1.6 * trained
    assert work.shadow_epochs == 0
    half = aftermath_left(plan, dataset, {"badnets/ft/baseline": 1})
    assert half.epochs == pytest.approx(work.epochs / 4, rel=0.05)
    (line,) = [line for line in plan_lines(plan, dataset) if line.startswith("aftermath")]
    assert f"reinjection and membership of 4 repaired models, {work.epochs:.1f} E" in line
    assert not [line for line in plan_lines(before, dataset) if line.startswith("aftermath")]


def test_the_plan_says_how_an_attack_without_poisoned_data_is_re_injected() -> None:
    spec = tiny_spec(*SOME, BASELINES, "attacks=[handcrafted]")
    dataset, _ = load_data(spec)
    assert "handcrafted releases no poisoned data" in "\n".join(plan_lines(make_plan(spec), dataset))


@pytest.mark.parametrize(
    ("assignments", "error", "message"),
    [
        (("aftermath.reinjection.rates=[2]",), SpecError, r"rates: each must be in \(0, 1\], or original, got 2"),
        (("aftermath.reinjection.rates=[]", "aftermath.reinjection.counts=[]"), SpecError, "both empty"),
        (("aftermath.reinjection.epoch=1",), SpecError, "did you mean 'aftermath.reinjection.epochs'"),
        (("aftermath.membership.attacks=[los]",), SpecError, "attacks.0: must be 'loss'"),
        (("aftermath.reinjection={}", "attacks=[clean]"), DataError, "attack clean has no trigger"),
        (("aftermath.retuning={}", "attacks=[clean]"), DataError, "aftermath.retuning: attack clean has no trigger"),
        (("aftermath.retuning.counts=[27]",), DataError, "27 poisoned images .* share 0.02 of 1297 is 26"),
        (("aftermath.connectivity={}", "attacks=[clean]"), DataError, "attack clean has no backdoor to go back to"),
        (("aftermath.connectivity.points=1",), SpecError, "points: must be greater than or equal to 2, got 1"),
        (("aftermath.membership.images=5000",), DataError, "5000 members .* use at most 500"),
    ],
)
def test_bad_input_gets_one_clear_line_before_any_work(
    assignments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    def check() -> None:
        spec = tiny_spec(*assignments)
        check_plan(make_plan(spec), load_data(spec)[0])

    with pytest.raises(error, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_a_stopped_study_goes_on_with_the_models_that_have_no_row(tmp_path: Path) -> None:
    spec = tiny_spec(*SOME, BASELINES, "defenses=[]")
    first = make_driver(spec, tmp_path / "trials.jsonl")
    assert run(first, slots=1, finishes=2) == 2
    first.ledger.close()
    second = make_driver(spec, tmp_path / "trials.jsonl")
    left = list[Job]()
    while (job := second.next_job()) is not None:
        left.append(job)
    assert len(left) == 2
    assert all(job.aftermath is not None for job in left)


def test_specs_without_it_read_as_before() -> None:
    spec = tiny_spec()
    assert spec.aftermath.resolved() is None
    assert StudySpec.model_validate(tiny_spec(*SOME).model_dump(mode="json")) == tiny_spec(*SOME)


# ------------------------------------------------------------------------------------------------ results and report


def curve(asr: list[float], arm: str = "5 images", **changes: Any) -> dict[str, Any]:
    """A record of four steps, two an epoch."""
    steps = [0, 1, 2, 4]
    reached = {
        name: next((s for s, v in zip(steps, asr, strict=True) if v >= level), None)
        for name, level in (("steps_to_half", 0.5), ("steps_to_90", 0.9))
    }
    area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(steps, steps[1:], asr, asr[1:], strict=False)) / 4
    return {
        "arm": arm,
        "lr": 0.001,
        "poisoned": 5,
        "steps_per_epoch": 2,
        **reached,
        "area": area,
        "diverged": False,
        "steps": steps,
        "asr": asr,
        "clean_accuracy": [0.9] * 4,
        **changes,
    }


def member(auc: float, group: str = "clean") -> dict[str, Any]:
    return {
        "group": group,
        "attack": "loss",
        "images": 100,
        "auc": auc,
        "balanced_accuracy": 0.5,
        "tpr_at_1_percent": 0.02,
        "tpr_at_01_percent": None,
        "train_accuracy": 0.99,
        "test_accuracy": 0.95,
        "gap": 0.04,
    }


def retuned(poisoned: int, p_asr: float) -> dict[str, Any]:
    return {
        "poisoned": poisoned,
        "images": 20,
        "draw": 0,
        "o_asr": 0.1,
        "p_asr": p_asr,
        "diverged": False,
        "accuracy_start": 0.9,
        "accuracy_end": 0.8,
        "steps": [0, 1, 5],
        "asr": [0.1, 0.2, p_asr],
        "clean_accuracy": [0.9, 0.9, 0.8],
    }


def walked(asr: list[float], statistics: str) -> dict[str, Any]:
    shares, accuracy = [0.0, 0.5, 1.0], [0.9, 0.7, 0.95]
    points = {"statistics": statistics, "share": shares, "asr": asr, "clean_accuracy": accuracy}
    return points | summary(shares, asr, accuracy)


def study_rows() -> list[dict[str, Any]]:
    """Undefended, clean, from scratch, and a repair that hid the backdoor; two seeds."""
    found = {
        ("none", "baseline"): ([1.0, 1.0, 1.0, 1.0], 0.7),
        ("none", "control"): ([0.0, 0.0, 0.2, 0.4], 0.6),
        ("scratch", "baseline"): ([0.0, 0.0, 0.0, 0.2], 0.5),
        ("ft", "baseline"): ([0.1, 0.6, 0.9, 1.0], 0.65),
    }
    return [
        make_row(
            f"badnets/{defense}/{role}",
            role=role,
            seed=seed,
            search=None,
            reinjection=json.dumps([curve(asr)]),
            membership=json.dumps([member(auc), member(auc, "poisoned")]),
            retuning=json.dumps([retuned(0, asr[0]), retuned(5, asr[-1])]),
            connectivity=None
            if role == "control"
            else json.dumps(
                [walked([asr[0], asr[1], 1.0], statistics) for statistics in ("interpolated", "refreshed")]
            ),
            seconds_aftermath=450.0,
            aftermath_forward_samples=1257,
            aftermath_backward_samples=1257,
            aftermath_input_backward_samples=0,
        )
        for (defense, role), (asr, auc) in found.items()
        for seed in (0, 1)
    ]


@pytest.fixture
def frame() -> pd.DataFrame:
    return to_frame(study_rows())


def test_every_model_is_read_against_the_clean_one_of_its_seed(frame: pd.DataFrame) -> None:
    table = reinjection_table(frame).set_index(["shown_as", "seed"]).sort_index()
    assert set(table.index.get_level_values(0)) == {"undefended", "clean model", "scratch", "ft"}
    assert table.loc[("clean model", 0), "area"] == pytest.approx((0.1 + 0.6) / 4)
    assert table.loc[("clean model", 0), "area_over_clean"] == 1.0
    assert table.loc[("ft", 1), "area_over_clean"] == pytest.approx((0.35 + 0.75 + 1.9) / 0.7)
    assert (table.loc[("ft", 0), "steps_to_half"], table.loc[("ft", 0), "steps_to_90"]) == (1, 2)
    assert table.loc[("scratch", 0), "area_over_clean"] < 1.0
    assert pd.isna(table.loc[("clean model", 0), "steps_to_half"])
    assert pd.isna(table.loc[("ft", 0), "steps_to_half_over_clean"])
    known = membership_table(frame).set_index(["shown_as", "seed", "group"]).sort_index()
    assert known.loc[("ft", 0, "clean"), "auc_over_undefended"] == pytest.approx(-0.05)
    assert known.loc[("ft", 0, "poisoned"), "auc_over_clean"] == pytest.approx(0.05)


def test_a_clean_model_that_never_obeys_counts_as_one_image() -> None:
    rows = [
        make_row("badnets/none/control", role="control", reinjection=json.dumps([curve([0.0] * 4)])),
        make_row("badnets/ft/baseline", reinjection=json.dumps([curve([0.5] * 4)])),
    ]
    table = reinjection_table(to_frame(rows)).set_index("shown_as")
    assert table.loc["ft", "area_over_clean"] == pytest.approx(0.5 * rows[1]["n_triggered_report"])


def test_models_to_read_against_stand_around_the_repairs() -> None:
    assert reading_order(["clean model", "ft", "abl", "undefended", "scratch"]) == [
        *("undefended", "abl", "ft", "scratch", "clean model")
    ]


def test_the_figure_draws_the_measured_points(frame: pd.DataFrame) -> None:
    figure = reinjection_png("re-injection", by_arm(reinjection_curves(frame)))
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"undefended", "clean model", "scratch", "ft"}
    assert lines["ft"].get_xdata().tolist() == [0, 0.5, 1, 2]
    assert lines["ft"].get_ydata().tolist() == pytest.approx([0.1, 0.6, 0.9, 1.0])


def test_the_way_back_is_drawn_for_both_kinds_of_statistics_above_the_accuracy(frame: pd.DataFrame) -> None:
    curves = connectivity_curves(frame)
    first = curves["shown_as"].eq("ft") & curves["seed"].eq(0) & curves["share"].eq(0.5)
    curves.loc[first & curves["statistics"].eq("refreshed"), "asr"] = 0.2
    panels = [
        {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.get_lines()}
        for axis in connectivity_png("the way back", curves).axes
    ]
    assert all(list(panel) == ["undefended", "ft", "scratch"] for panel in panels)
    assert panels[0]["ft"] == ([0, 0.5, 1], pytest.approx([0.1, 0.6, 1.0]))
    assert panels[1]["ft"] == ([0, 0.5, 1], pytest.approx([0.1, 0.4, 1.0]))  # mean of 0.2 and 0.6
    assert [panel["ft"][1] for panel in panels[2:]] == [pytest.approx([0.9, 0.7, 0.95])] * 2


def test_the_way_back_of_models_without_running_statistics_has_two_panels(frame: pd.DataFrame) -> None:
    curves = connectivity_curves(frame)
    figure = connectivity_png("the way back", curves[curves["statistics"] == "interpolated"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["ASR", "clean accuracy"]
    assert [axis.get_title() for axis in figure.axes] == ["", ""]  # there is but one kind


def test_what_a_study_sets_apart_is_grey_and_broken_in_both_figures(frame: pd.DataFrame) -> None:
    for figure in (
        reinjection_png("re-injection", by_arm(reinjection_curves(frame)), apart=["ft"]),
        connectivity_png("the way back", connectivity_curves(frame), apart=["ft"]),
    ):
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        assert (lines["undefended"].get_linestyle(), lines["ft"].get_linestyle()) == ("-", "-.")
        assert lines["ft"].get_color() == lines["undefended"].get_color() == GREY


def test_the_titles_of_panels_beside_each_other_do_not_run_into_each_other(frame: pd.DataFrame) -> None:
    curves = reinjection_curves(frame)
    panels = {f"dataset {name}: original rate, learning rate 0.001": curves for name in ("cifar10", "cifar100", "x")}
    figure = reinjection_png("re-injection", panels)
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert figure.axes[0].get_title().startswith("dataset cifar10:\n")


def test_a_single_trial_says_it_in_lines() -> None:
    repaired = study_rows()[-1]
    assert in_words(repaired) == [
        "re-injection, 5 images at rate 0.001: ASR 0.1000 -> 1.0000 in 4 steps, 0.5 after 1 steps, mean 0.7500",
        "retuning, 0 poisoned of 20 images, draw 0: O-ASR 0.1000, P-ASR 0.1000",
        "retuning, 5 poisoned of 20 images, draw 0: O-ASR 0.1000, P-ASR 1.0000",
        "way back, interpolated statistics: ASR 0.1000 -> 1.0000, half of it back at 0.5 of the way, barrier 0.4250, "
        "accuracy at least 0.7000",
        "way back, refreshed statistics: ASR 0.1000 -> 1.0000, half of it back at 0.5 of the way, barrier 0.4250, "
        "accuracy at least 0.7000",
        "membership of clean images, loss: AUC 0.6500, balanced accuracy 0.5000, gap 0.0400 (100 members)",
        "membership of poisoned images, loss: AUC 0.6500, balanced accuracy 0.5000, gap 0.0400 (100 members)",
    ]
    assert in_words(make_row()) == []


def test_rows_without_an_aftermath_add_nothing_to_the_page(tmp_path: Path) -> None:
    assert aftermath_parts(to_frame([make_row()]), {}) == {}
    with pytest.raises(ValueError, match="no row of this study holds an aftermath"):
        aftermath_markdown(to_frame([make_row()]))


def test_the_tables_of_the_page_are_had_as_markdown(frame: pd.DataFrame) -> None:
    text = aftermath_markdown(frame)
    titles = [line for line in text.splitlines() if line.startswith("digits ")]
    assert [line.partition(": ")[2] for line in titles] == [TITLES[key] for key in aftermath_parts(frame, {})]
    (line,) = [line for line in text.splitlines() if "5 images" in line and " ft " in line]
    assert "| 10.0 % |" in line, "the ASR at step 0"
    assert "| remark |" not in text, "nothing diverged, so the column says nothing"


def test_a_victim_without_a_backdoor_tells_nothing_of_one_that_comes_back() -> None:
    rows = [{**row, "status": "backdoor_not_implanted"} if row["role"] != "control" else row for row in study_rows()]
    parts = aftermath_parts(to_frame(rows), {})
    assert set(parts) <= {"membership"}, "who was in the training set is another question"


def test_the_command_prints_them_and_asks_for_one_thing_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(tiny_spec(*SOME, BASELINES).to_yaml())
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in study_rows()))
    assert "How quickly does the backdoor come back?" in invoke("table", tmp_path, "--aftermath").stdout
    refused = invoke("table", tmp_path, "--aftermath", "--less", "ft")
    assert refused.exit_code == 2
    assert "give one of the two" in refused.stderr
    (tmp_path / "trials.jsonl").write_text(json.dumps(make_row()) + "\n")
    assert "no row of this study holds an aftermath" in invoke("table", tmp_path, "--aftermath").stderr


def test_the_report_shows_both_and_writes_their_tables(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in study_rows()))
    page = write_report(tmp_path).read_text()
    assert "How quickly does the backdoor come back?" in page
    assert "Do a few poisoned images bring the backdoor back?" in page
    assert "How far from the backdoored weights did the repair get?" in page
    assert "Does the model tell who was in its training set?" in page
    assert "8.0 E, 1.00 hours, beside that of the trials" in page
    assert "could not be drawn" not in page
    for name in ("reinjection", "connectivity"):
        assert (tmp_path / "figures" / f"{name}_badnets.png").stat().st_size > 10_000
        assert page.count(f'alt="{name}"') == 1
    tables = {
        name: pd.read_csv(tmp_path / f"{name}.csv")
        for name in (
            "reinjection",
            "reinjection_curves",
            "retuning",
            "connectivity",
            "connectivity_curves",
            "membership",
        )
    }
    assert {name: len(table) for name, table in tables.items()} == {
        "reinjection": 8,
        "reinjection_curves": 32,
        "retuning": 16,
        "connectivity": 12,
        "connectivity_curves": 36,
        "membership": 16,
    }
