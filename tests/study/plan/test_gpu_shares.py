"""Every kind of trial gets the share of a card that its memory, its load and the CPUs allow; a record is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.overview import plan_summary
from study.plan.forecast import Forecast, look_ahead
from study.plan.gpu_shares import (
    MEASURED_FILE,
    Kind,
    Measurement,
    choose_shares,
    kinds,
    read_measurements,
    still_valid,
    write_measurements,
)
from study.plan.jobs import Plan, make_plan
from study.plan.slots import Node
from study.spec.load import make_spec
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from trainables.data.images import Dataset
from trainables.data.load import load_dataset

GIB = 2**30
DGX = Node("dgx", 128.0, 8, "A100")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=8)


def measured(peak: float = 2.0, busy: float = 0.1, **changes: Any) -> Measurement:
    given = {"seconds": 10.0, "epochs": 5.0, **changes}
    return Measurement("A100-SXM4-40GB", "A100", 40 * GIB, int(peak * GIB), GIB // 2, busy, **given)


@pytest.mark.parametrize(
    ("peak", "busy", "most", "k"),
    [
        (2.0, 0.01, 100, 17),  # memory: 40 / (2 * 1.15)
        (2.0, 0.01, 16, 16),  # CPUs beside the card
        (2.0, 0.3, 16, 3),  # 3 * 0.3 is full
        (2.0, 0.25, 16, 4),
        (2.0, 0.5, 16, 2),
        (2.0, 0.46, 16, 2),
        (2.0, 0.95, 16, 1),
        (2.0, 0.0, 16, 16),
        (9.0, 0.1, 16, 3),
        (30.0, 0.1, 16, 1),
        (39.9, 0.1, 16, 1),
        (2.0, 0.1, 0, 1),
    ],
)
def test_a_kind_gets_as_many_trials_per_card_as_memory_time_and_cpus_allow(
    peak: float, busy: float, most: int, k: int
) -> None:
    item = measured(peak, busy)
    assert item.trials_per_gpu(most) == k
    assert k == 1 or k * item.peak_bytes * 1.1 < item.total_bytes


def test_a_kind_that_needs_more_than_a_card_gets_a_whole_one() -> None:
    assert measured(0.1, 0.01, error="CUDA out of memory").trials_per_gpu(16) == 1


def test_a_kind_is_a_defense_with_its_model_image_and_batch_size() -> None:
    plan = make_plan(tiny_spec("attacks=[badnets, blended]", "baselines=[none, ft, super_ft]", "seeds=[0, 1]"))
    found = kinds(plan, 8)
    assert [kind.name for kind in found] == [
        "super_ft, preact_resnet18 of width 2, 8 pixels, batch 16",
        "none, preact_resnet18 of width 2, 8 pixels",
        "ft, preact_resnet18 of width 2, 8 pixels, batch 256",
    ]
    assert [(len(kind.labels), len(kind.cells)) for kind in found] == [(4, 4), (2, 4), (2, 4)], "searched and published"
    assert sorted(label for kind in found for label in kind.labels) == sorted(plan.jobs_by_label())
    for kind in found:
        assert {cell.defense for cell in kind.cells} == {kind.name.split(",")[0]}
    assert found[0].settings["lr_max1"] == 0.1, "the published point"


FIRST, SECOND, NONE = "badnets/super_ft", "badnets/ft", "badnets/none/baseline"


def plan_of(*defenses: str) -> tuple[Plan, list[Kind]]:
    plan = make_plan(make_spec({"attacks": ["badnets"], "defenses": list(defenses), "search": {"trials": 100}}))
    return plan, kinds(plan, 16)


def test_every_kind_gets_a_share_of_its_own() -> None:
    plan, found = plan_of("super_ft", "ft")
    left = plan.jobs_by_label()
    known = {found[0].name: measured(busy=0.24), found[1].name: measured(peak=15.0)}
    assert choose_shares(found, known, left, [DGX], 1) == {FIRST: 0.25, SECOND: 0.5}
    assert choose_shares(found, known, left, [Node("a", 16, 8)], 1) == {FIRST: 0.5, SECOND: 0.5}, "CPUs bind"
    assert choose_shares(found, {}, left, [DGX], 1) == {FIRST: 1.0, SECOND: 1.0}, "nothing is known"


def test_a_kind_with_few_trials_takes_a_share_that_is_in_use() -> None:
    _, found = plan_of("super_ft", "ft")
    known = {found[0].name: measured(busy=0.24), found[1].name: measured(busy=0.12)}
    assert choose_shares(found, known, {FIRST: 100, SECOND: 100}, [DGX], 1) == {FIRST: 0.25, SECOND: 0.125}
    assert choose_shares(found, known, {FIRST: 100, SECOND: 10}, [DGX], 1) == {FIRST: 0.25, SECOND: 0.25}
    assert choose_shares(found, known, {FIRST: 0, SECOND: 10}, [DGX], 1) == {FIRST: 0.25, SECOND: 0.125}, (
        "the others are done"
    )
    known = {found[0].name: measured(busy=0.12), found[1].name: measured(busy=0.24)}
    assert choose_shares(found, known, {FIRST: 100, SECOND: 3}, [DGX], 1) == {FIRST: 0.125, SECOND: 0.25}, (
        "never a smaller one"
    )


def test_measurements_are_kept_in_the_folder_and_a_damaged_file_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_measurements(tmp_path) == {}
    known = {"super_ft, batch 16": measured(), "ft": measured(error="full", cut=True)}
    write_measurements(tmp_path, known)
    assert read_measurements(tmp_path) == known
    for damaged in ('{"ft": {"card"', '{"ft": {"card": 1}}', "[1]"):
        (tmp_path / MEASURED_FILE).write_text(damaged)
        caplog.clear()
        assert read_measurements(tmp_path) == {}
        assert "damaged file" in caplog.text


def test_measurements_hold_for_the_cards_they_were_taken_on() -> None:
    known = {"ft": measured()}
    assert still_valid(known, [Node("head", 4), DGX]) == known
    assert still_valid(known, [Node("a", 8, 1, "H100")]) == {}
    assert still_valid(known, [Node("here", 8, 1)]) == known, "of a type that is not known"
    assert still_valid(known, [Node("a", 8)]) == {}


# -- what is said before work starts ----------------------------------------------------------------------------------


def ahead_of(plan: Plan, digits: Dataset, folder: Path, nodes: list[Node]) -> Forecast:
    return look_ahead(plan, digits, folder, nodes, plan.jobs_by_label())


def test_without_a_gpu_nothing_is_measured(digits: Dataset, tmp_path: Path) -> None:
    plan = make_plan(tiny_spec())
    ahead = ahead_of(plan, digits, tmp_path, [Node("a", 2)])
    assert ahead.shares == {FIRST: 0.0, NONE: 0.0}
    assert ahead.victim_gpus == 0.0
    assert ahead.slot_lines() == ["slots:     5 trials on 2 slots of 1 CPU (1 node of 2 CPUs: 2 slots each)"]
    assert ahead.time_line() == "time:      unknown before some trials have ended"


def test_a_share_in_the_spec_is_taken_without_measuring(digits: Dataset, tmp_path: Path) -> None:
    plan = make_plan(tiny_spec("resources.gpus_per_trial=1/4"))
    ahead = ahead_of(plan, digits, tmp_path, [DGX, DGX])
    assert ahead.shares == {NONE: 0.25, FIRST: 0.25}
    assert ahead.victim_gpus == 0.25
    assert ahead.slot_lines() == [
        "slots:     5 trials on 64 slots of 1 CPU and 1/4 GPU (2 nodes of 128 CPUs and 8 GPUs: 32 slots each)"
    ]


def test_a_study_that_fits_on_whole_cards_at_once_is_not_measured(digits: Dataset, tmp_path: Path) -> None:
    assert ahead_of(make_plan(tiny_spec()), digits, tmp_path, [DGX]).shares == {NONE: 1.0, FIRST: 1.0}
    assert ahead_of(make_plan(tiny_spec("search.trials=8")), digits, tmp_path, [DGX]).shares is None


def test_what_is_missing_is_measured_and_a_continued_study_takes_what_was_measured(
    digits: Dataset, tmp_path: Path
) -> None:
    plan = make_plan(tiny_spec("search.trials=99"))
    ahead = ahead_of(plan, digits, tmp_path, [DGX])
    assert ahead.shares is None
    assert ahead.victim_gpus == 1.0
    assert "how many share a GPU is measured after the victims, by a trial of each of 2 kinds" in ahead.slot_lines()[0]
    assert [kind.labels for kind in ahead.missing()] == [("badnets/super_ft",), ("badnets/none/baseline",)]
    super_ft, none = (kind.name for kind in ahead.kinds)
    write_measurements(tmp_path, {super_ft: measured(busy=0.24)})
    again = ahead_of(plan, digits, tmp_path, [DGX])
    assert [kind.name for kind in again.missing()] == [none]
    known = again.with_measured({none: measured(busy=0.1)})
    assert known.shares == {FIRST: 0.25, NONE: 0.25}, "one trial takes what is in use"
    write_measurements(tmp_path, known.measured)
    continued = ahead_of(plan, digits, tmp_path, [DGX])
    assert continued.shares == known.shares
    assert continued.outside_bytes == GIB // 2
    lines = continued.slot_lines()
    assert lines[0].startswith("slots:     100 trials on 32 slots of 1 CPU and 1/4 GPU")
    assert lines[1] == (
        f"kind:      {super_ft}: 1/4 GPU (A100-SXM4-40GB: 2.0 of 40.0 GiB, of it 0.5 context; busy 24% of 10 s)"
    )
    assert continued.time_line().startswith("time:      about 31 s for the trials, until ")


def test_expected_time_is_work_over_slots_and_at_least_the_longest_trial(digits: Dataset, tmp_path: Path) -> None:
    plan = make_plan(tiny_spec("search.trials=99", "resources.gpus_per_trial=1/2", "baselines=[]"))
    ahead = ahead_of(plan, digits, tmp_path, [DGX])
    (kind,) = ahead.kinds
    assert ahead.expected_seconds([]) is None, "never timed"
    alone = ahead.with_measured({kind.name: measured(busy=0.95)})
    assert alone.shares == {FIRST: 1.0}
    assert alone.expected_seconds([]) == pytest.approx(99 / 8 * 10)
    rows = [{"status": "ok", "search": FIRST, "wall_seconds": 4.0}]
    rows += [{"status": "failed", "search": FIRST, "wall_seconds": None}]
    assert ahead.expected_seconds(rows) == pytest.approx(99 / 16 * 4)
    few = look_ahead(plan, digits, tmp_path, [DGX], {FIRST: 1})
    assert few.expected_seconds(rows) == pytest.approx(4)


def test_of_one_method_with_two_lengths_neither_is_forecast_as_the_other(digits: Dataset, tmp_path: Path) -> None:
    plan = make_plan(
        tiny_spec(
            *("defenses=[]", "baselines=[short, long]", "resources.gpus_per_trial=0"),
            *("defense.short={method: ft, steps: 10}", "defense.long={method: ft, steps: 1000}"),
        )
    )
    short, long = (job.label for job in plan.baselines)
    one_slot = [Node("a", 1, 0)]
    ahead = look_ahead(plan, digits, tmp_path, one_slot, {short: 2, long: 3})
    rows = [{"status": "ok", "search": None, "trial": short, "wall_seconds": 1.0}]
    assert ahead.expected_seconds(rows) == pytest.approx(2 * 1.0 + 3 * 100.0)
    rows += [{"status": "ok", "search": None, "trial": long, "wall_seconds": 30.0}]
    assert ahead.expected_seconds(rows) == pytest.approx(2 * 1.0 + 3 * 30.0)


def test_a_trial_on_a_full_card_takes_longer_and_one_that_was_cut_as_long_as_its_work() -> None:
    assert measured(busy=0.2).seconds_beside(3, epochs=5.0) == pytest.approx(10)
    assert measured(busy=0.3).seconds_beside(3, epochs=5.0) == pytest.approx(12)
    assert measured(busy=0.2, cut=True).seconds_beside(0, epochs=20.0) == pytest.approx(40)
    assert measured(busy=0.2, cut=True, epochs=0.0).seconds_beside(0, epochs=20.0) == pytest.approx(10)


def test_the_plan_of_another_machine_is_a_plan_and_shows_what_was_measured_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    said = plan_summary(tiny_spec("resources.gpus_per_trial=1/4"), tmp_path)
    assert "total:     5 trials" in said
    assert "slots:     none on this machine: resources.gpus_per_trial is 0.25 but no node has a GPU" in said
    write_measurements(tmp_path, {"super_ft, batch 16": measured()})
    said = plan_summary(tiny_spec(), tmp_path)
    assert "slots:     5 trials on " in said
    assert "measured:  super_ft, batch 16: A100-SXM4-40GB: 2.0 of 40.0 GiB, of it 0.5 context; busy 10%" in said


def test_nodes_without_what_the_spec_asks_for_are_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no node has a GPU"):
        ahead_of(make_plan(tiny_spec("resources.gpus_per_trial=1/4")), digits, tmp_path, [Node("a", 2)])
