"""A claim gets a verdict from runs under its own conditions alone, and each verdict from what it takes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from study.claims.judge import Place, meets
from study.claims.paper import Expected
from study.claims.runs import distinct, read_runs
from study.spec.combinations import as_json, combinations_of, names_of
from study.spec.load import make_spec
from study.spec.sweep import combinations
from tests.study.claims.made_up import PAPER, READINGS, curves_of, judged, point_of, rows_of, spec_of
from tests.study.rows import make_row

TWENTY: dict[str, Any] = {"clean_fraction": 0.2}
SMALL_TASK = "digits, airbench_cnn of width 8, clean fraction 0.1, poison rate 0.1"


def test_two_of_three_attackers_make_it_reproduced() -> None:
    found = judged("fig13-20", *rows_of(asr=(0.03, 0.09, 0.9), **TWENTY))
    assert (found.verdict, found.under) == ("reproduced", ("P1",))
    (place,) = found.places
    (numbers,) = place.measured
    assert (numbers.seeds, numbers.seeds_met, numbers.recipe) == (3, 2, "sha")
    assert numbers.estimates["asr"].value == pytest.approx(0.34)
    assert numbers.estimates["asr"].low < 0.1 < 0.9 < numbers.estimates["asr"].high + 0.1
    assert "P2" in place.missing


def test_one_of_three_does_not_and_the_readings_that_were_not_run_are_named() -> None:
    found = judged("fig13-20", *rows_of(asr=(0.03, 0.2, 0.9), **TWENTY))
    assert found.verdict == "not reproduced"
    assert found.places[0].missing == tuple(name for name in PAPER.readings.needed if name != "P1")


def test_it_is_refuted_once_it_has_failed_under_every_reading_needed() -> None:
    rows = [row for name in PAPER.readings.needed for row in rows_of(name, asr=(0.5, 0.5, 0.5), **TWENTY)]
    found = judged("fig13-20", *rows)
    assert (found.verdict, set(found.under)) == ("refuted", set(PAPER.readings.needed))
    assert judged("fig13-20", *rows[:-3]).verdict == "not reproduced"
    (best, *_) = rows_of("T", **TWENTY)
    one_better = [row if row["defense_label"] != "T" else {**row, "asr": best["asr"]} for row in rows]
    assert judged("fig13-20", *one_better).under == ("T",)


DIFFERENT = [
    ({"dataset": "digits"}, "digits, not cifar10"),
    ({"dataset": "cifar100"}, "cifar100, not cifar10"),
    ({"train_size": 10_000}, "training images 10000, not 50000"),
    ({"model": "airbench_cnn"}, "airbench_cnn, not preact_resnet18"),
    ({"width": 16}, "width 16, not 64"),
    ({"image_size": 16}, "image size 16, not 32"),
    ({"scenario": "same-label"}, "scenario same-label, not standalone"),
    ({"clean_fraction": 0.1}, "clean fraction 0.1, not 0.2"),
    ({"clean_source": "heldout"}, "clean source heldout, not overlap"),
    ({"label_noise": 0.1}, "label noise 0.1, not 0"),
    ({"residual_poison": 0.05}, "residual poison 0.05, not 0"),
    ({"poison_rate": 0.02}, "poison rate 0.02, not 0.1"),
]


@pytest.mark.parametrize(("change", "why"), DIFFERENT, ids=lambda item: item if isinstance(item, str) else "")
def test_runs_under_another_condition_are_not_comparable_and_the_condition_is_named(
    change: dict[str, Any], why: str
) -> None:
    found = judged("fig13-20", *rows_of(**{**TWENTY, **change}))
    assert (found.verdict, found.why) == ("not comparable", why)
    assert found.places[0].measured == ()


def test_what_stands_in_the_spec_alone_is_a_condition_too() -> None:
    rows = rows_of(**TWENTY)
    shorter = judged("fig13-20", *rows, spec=spec_of(victim={"epochs": 20}))
    assert shorter.why == "victims' recipe sha with epochs 20, not sha or bb"
    stronger = judged("fig13-20", *rows, spec=spec_of(attack={"blended": {"alpha": 0.5}}))
    assert stronger.why == "settings of the attack alpha 0.5, not as published"
    same = spec_of(victim={"epochs": 200}, attack={"blended": {"alpha": 0.2}})
    assert judged("fig13-20", *rows, spec=same).verdict == "reproduced"


def test_other_settings_follow_no_reading() -> None:
    found = judged("fig13-20", *rows_of(changes={"lr_max1": 0.7}, **TWENTY))
    assert (found.verdict, "settings of none of the readings P1, P2" in found.why) == ("not comparable", True)
    found = judged("fig15-cifar100-0.3", *rows_of(dataset="cifar100", clean_fraction=0.1))
    assert found.why == "lr_max1 0.1, not 0.3"


def test_fewer_than_three_attackers_are_not_enough_however_many_defenders() -> None:
    rows = [row for own in (0, 1) for row in rows_of(asr=(0.03, 0.03), defense_seed=own, **TWENTY)]
    assert judged("fig13-20", *rows).why == "2 attack seeds, not 3 or more"


def test_of_an_attackers_runs_more_than_half_must_meet_the_claim() -> None:
    good, bad = (rows_of(asr=(asr,) * 3, defense_seed=own, **TWENTY) for own, asr in ((0, 0.03), (1, 0.5)))
    found = judged("fig13-20", *good, *bad)
    assert (found.verdict, found.places[0].measured[0].runs_met) == ("not reproduced", 3)


def test_one_run_that_stands_in_two_studies_counts_once() -> None:
    rows = rows_of(asr=(0.03, 0.03), **TWENTY)
    assert judged("fig13-20", *rows, *({**row, "study": "another"} for row in rows)).verdict == "not comparable"


def test_smaller_tasks_show_a_direction_and_never_a_verdict() -> None:
    small = {"dataset": "digits", "model": "airbench_cnn", "width": 8, "image_size": 16, "train_size": 1297}
    found = judged("fig13-10", *rows_of(asr=(0.0, 0.0, 0.95), **{**small, "clean_fraction": 0.1}))
    assert found.verdict == "not comparable"
    (direction,) = found.directions
    assert (direction.runs_met, direction.runs, direction.where) == (1, 3, SMALL_TASK)
    # Other conditions are another direction, not more runs of the same.
    rows = rows_of(**{**small, "clean_fraction": 0.1})
    two = [{**row, "width": width, "victim": f"{row['victim']}, {width}"} for width in (8, 16) for row in rows]
    assert [one.runs for one in judged("fig13-10", *two).directions] == [3, 3]
    # After how many epochs is what this claim is about: a few of them do not show that a backdoor stays.
    short = [{**row, **small} for row in fine_tuned(0.01, 0.5, 10)]
    assert judged("fig14-victim-rate", *short, spec=spec_of("bb")).directions == ()
    # The share of clean images is what this claim is about.
    assert judged("fig13-10", *rows_of(**{**small, "clean_fraction": 0.5})).directions == ()
    # An accuracy on digits says nothing of one on photographs.
    assert judged("fig15-accuracy-0.1", *rows_of(**{**small, "clean_fraction": 0.1})).directions == ()


def test_victims_without_backdoor_failed_and_ruined_runs_bear_nothing_out() -> None:
    absent = rows_of(status="backdoor_not_implanted", **TWENTY)
    assert judged("fig13-20", *absent).why == "no run of blended under this repair"
    failed = [{**row, "status": "failed", "asr": None, "clean_accuracy": None} for row in rows_of(**TWENTY)]
    assert judged("fig13-20", *failed).why == "no run of blended under this repair"
    collapsed = judged("fig13-20", *rows_of(collapsed=True, **TWENTY))
    assert (collapsed.verdict, collapsed.places[0].measured[0].runs_met) == ("not reproduced", 0)
    diverged = rows_of(asr=(1.0,) * 3, status="diverged", clean_accuracy=0.0, clean_fraction=0.1)
    assert judged("fig13-10", *diverged).verdict == "not reproduced"


def test_a_claim_of_two_numbers_needs_both() -> None:
    assert judged("main-blended", *rows_of(clean_accuracy=0.93)).verdict == "reproduced"
    assert judged("main-blended", *rows_of(clean_accuracy=0.9)).verdict == "not reproduced"


def test_a_difference_is_taken_between_repairs_of_one_victim() -> None:
    low = rows_of(asr=(0.02,) * 3, changes={"lr_max1": 0.1}, clean_fraction=0.1)
    high = rows_of(asr=(0.05,) * 3, changes={"lr_max1": 0.5}, clean_fraction=0.1)
    places = {(one.attack, one.dataset): one for one in judged("fig15-little-change", *low, *high).places}
    here = places["blended", "cifar10"]
    assert here.verdict == "reproduced"
    assert here.measured[0].estimates["asr"].value == pytest.approx(0.03)
    others = [{**row, "victim": f"another {row['victim']}"} for row in low]
    assert judged("fig15-little-change", *others, *high).why == "no run with lr_max1 0.1 beside it"


def test_a_difference_that_chance_decides_is_neither_reproduced_nor_refuted() -> None:
    """Two of three attackers lie below 0, by luck as well as not; all three clearly, or none, is another matter."""

    def verdict(*rises: float) -> tuple[str, str]:
        slow = [{**row, "clean_accuracy": 0.8} for row in fine_tuned(0.01, 0.9)]
        fast = [{**row, "clean_accuracy": 0.8 + rise} for row, rise in zip(fine_tuned(0.1, 0.0), rises, strict=True)]
        found = judged("fig14-cost", *slow, *fast, spec=spec_of("bb"))
        place = {(one.attack, one.dataset): one for one in found.places}["blended", "cifar10"]
        return place.verdict, "; ".join(place.differs)

    assert verdict(-0.02, -0.03, 0.04) == (
        "not comparable", "95 % intervals over the attackers reach over the claim's bound: more attackers would tell"
    )  # fmt: skip
    assert verdict(-0.09, -0.1, -0.11)[0] == "reproduced"
    assert verdict(0.09, 0.1, 0.11)[0] in ("not reproduced", "refuted")


def test_readings_with_a_value_of_their_own_are_not_needed_where_the_claim_states_it() -> None:
    rows = [
        row
        for name in PAPER.readings.needed
        if name != "T"
        for row in rows_of(name, changes={"lr_max1": 0.3}, asr=(0.9,) * 3, dataset="cifar100", clean_fraction=0.1)
    ]
    assert judged("fig15-cifar100-0.3", *rows).verdict == "refuted"


def fine_tuned(lr: float, asr: float, steps: int = 19_600, **columns: Any) -> list[dict[str, Any]]:
    settings = {"lr": lr, "schedule": "constant", "scope": "all", "optimizer": "sgd", "steps": steps}
    return [
        {**row, "defense": "ft", "resolved_settings": json.dumps(settings), "steps": steps, "batch": 256}
        for row in rows_of(asr=(asr,) * 3, **columns)
    ]


def test_fine_tuning_is_judged_at_its_rate_and_its_length() -> None:
    here = ("blended", "cifar10")

    def verdicts(claim: str, *rows: dict[str, Any], **more: Any) -> dict[tuple[str, str], str]:
        return {(one.attack, one.dataset): one.verdict for one in judged(claim, *rows, **more).places}

    assert verdicts("fig14-victim-rate", *fine_tuned(0.001, 0.9))[here] == "reproduced"
    # The rate of a victim trained by bb is 0.01.
    assert verdicts("fig14-victim-rate", *fine_tuned(0.001, 0.9), spec=spec_of("bb"))[here] == "not comparable"
    assert verdicts("fig14-victim-rate", *fine_tuned(0.01, 0.9), spec=spec_of("bb"))[here] == "reproduced"
    assert verdicts("fig14-0.1", *fine_tuned(0.1, 0.0, steps=190))[here] == "reproduced"
    assert verdicts("fig14-0.1", *fine_tuned(0.1, 0.0))[here] == "not comparable"
    assert verdicts("fig14-0.001", *fine_tuned(0.001, 0.9))[here] == "not reproduced"


def after_one_pass(*points: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Place:
    """What fig14-0.1 finds in 100 passes over CIFAR-10 with these points on the way."""
    rows = fine_tuned(0.1, 0.5) if rows is None else rows
    found = judged("fig14-0.1", *rows, curves=curves_of(rows, *points))
    return {(one.attack, one.dataset): one for one in found.places}["blended", "cifar10"]


START, END = point_of(0.0, 0.99), point_of(100.0, 0.5)


def test_a_claim_about_the_way_is_judged_at_the_point_of_the_curve_that_is_nearest() -> None:
    gone = after_one_pass(START, point_of(0.6, 0.7), point_of(0.98, 0.02), point_of(1.09, 0.6), END)
    assert gone.verdict == "reproduced"
    assert gone.measured[0].estimates["asr"].value == pytest.approx(0.02)
    assert after_one_pass(START, point_of(1.0, 0.3), END).verdict == "not reproduced"


def test_a_curve_without_a_point_there_is_not_comparable_and_says_so() -> None:
    why = ("passes over the clean set 100.4, not 0.5 to 1.1, and no point of a curve there",)
    for points in ((START, point_of(1.2, 0.02), END), (START, point_of(1.0, 0.02, kept=False), END)):
        found = after_one_pass(*points)
        assert (found.verdict, found.differs) == ("not comparable", why)
    rows = fine_tuned(0.1, 0.0)
    (here,) = [one for one in judged("fig14-0.1", *rows).places if (one.attack, one.dataset) == ("blended", "cifar10")]
    assert (here.verdict, here.differs) == ("not comparable", why)


def test_a_repair_that_ends_there_counts_by_its_end() -> None:
    rows = fine_tuned(0.1, 0.03, steps=190)
    assert after_one_pass(START, point_of(0.9, 0.5), rows=rows).verdict == "reproduced"


def test_a_model_that_had_collapsed_on_the_way_bears_nothing_out() -> None:
    rows = fine_tuned(0.1, 0.5, accuracy_by_class=json.dumps([0.9] * 10))
    ruined = after_one_pass(START, point_of(1.0, 0.0, clean_accuracy=0.15), END, rows=rows)
    assert ruined.verdict == "not reproduced"
    assert ruined.measured[0].estimates["asr"].value == 1.0
    # What became of it later is another matter.
    later = [{**row, "collapsed": True} for row in rows]
    assert after_one_pass(START, point_of(1.0, 0.0), END, rows=later).verdict == "reproduced"


def test_of_two_studies_with_one_run_the_one_with_a_curve_counts() -> None:
    rows = fine_tuned(0.1, 0.5)
    with_curves = read_runs(spec_of(), rows, curves=curves_of(rows, START, point_of(1.0, 0.02), END))
    own = distinct([*read_runs(spec_of(), rows), *with_curves])
    assert [len(run.curve) for run in own] == [3, 3, 3]


def test_a_smaller_task_shows_a_direction_along_its_curve() -> None:
    small = {"dataset": "digits", "model": "airbench_cnn", "width": 8, "image_size": 16, "train_size": 1297}
    rows = [{**row, **small} for row in fine_tuned(0.1, 0.5)]
    found = judged("fig14-0.1", *rows, curves=curves_of(rows, START, point_of(1.0, 0.02), END))
    assert found.verdict == "not comparable"
    assert [(one.runs_met, one.runs) for one in found.directions] == [(3, 3)]


def test_each_of_several_settings_will_do_and_all_must_fail_to_refute() -> None:
    assert judged("main-blended-ft", *fine_tuned(0.001, 0.9)).under == ("sha (the victims' lr)",)
    assert judged("main-blended-ft", *fine_tuned(0.0003, 0.9)).under == ("sha (lr 0.0003)",)
    failed = judged("main-blended-ft", *fine_tuned(0.001, 0.0))
    assert failed.verdict == "not reproduced"
    assert failed.places[0].missing == ("sha (lr 0.0003)", "bb (the victims' lr)", "bb (lr 0.0003)")
    neither = judged("main-blended-ft", *fine_tuned(0.05, 0.9))
    assert neither.why == "lr 0.05, not 0.001 (the victims') or 0.0003"


def test_almost_all_is_four_of_five_places() -> None:
    places = list(
        itertools.product(("badnets", "blended", "lf", "inputaware", "wanet"), ("cifar10", "cifar100", "gtsrb"))
    )

    def verdict(gone: int) -> str:
        rows = [
            row
            for number, (attack, dataset) in enumerate(places)
            for row in rows_of(
                asr=(0.02 if number < gone else 0.9,) * 3,
                attack=attack,
                dataset=dataset,
                train_size=PAPER.training_images[dataset],
                changes={"lr_max1": 0.3},
                clean_fraction=0.1,
            )
        ]
        return judged("fig15-almost-all", *rows).verdict

    assert (verdict(12), verdict(11)) == ("reproduced", "not reproduced")


def test_ten_percent_is_not_refuted_before_the_schedule_was_tried_in_epochs() -> None:
    rows = [
        row
        for name in PAPER.readings.needed
        if name != "P1-epochs"
        for row in rows_of(name, asr=(0.0,) * 3, clean_fraction=0.1)
    ]
    found = judged("fig13-10", *rows)
    assert (found.verdict, found.places[0].missing) == ("not reproduced", ("P1-epochs",))


def test_accuracy_remains_high_where_a_tenth_costs_no_more_than_the_tolerance() -> None:
    def verdict(drop: float) -> str:
        all_of_it = [{**row, "clean_accuracy": 0.93} for row in rows_of()]
        tenth = [{**row, "clean_accuracy": 0.93 - drop} for row in rows_of(clean_fraction=0.1)]
        found = judged("fig13-accuracy", *all_of_it, *tenth)
        return {(one.attack, one.dataset): one.verdict for one in found.places}["blended", "cifar10"]

    assert (verdict(0.005), verdict(-0.05), verdict(0.05)) == ("reproduced", "reproduced", "not reproduced")


def test_a_claim_about_most_cases_is_open_until_most_are_known() -> None:
    places = list(itertools.product(("badnets", "blended", "lf", "inputaware"), ("cifar10", "cifar100")))

    def cases(number: int, asr: float) -> list[dict[str, Any]]:
        return [row for a, d in places[:number] for row in rows_of(asr=(asr,) * 3, attack=a, dataset=d, **TWENTY)]

    some = judged("fig13-most", *cases(7, 0.03))
    assert some.verdict == "not comparable"
    assert some.why == "7 of 15 places measured; of the others: cifar10, not gtsrb"
    assert judged("fig13-most", *cases(8, 0.03)).verdict == "reproduced"
    assert judged("fig13-most", *cases(8, 0.5)).verdict == "not reproduced"


def test_an_attack_that_had_failed_before_is_still_compared_with_the_papers() -> None:
    row = {"attack": "latent", "status": "backdoor_not_implanted", "asr_before": 0.2}
    found = judged("table1-latent", *rows_of(asr=(0.09,) * 3, **row))
    assert found.verdict == "reproduced"


def test_the_user_may_say_that_a_folder_is_one_of_the_papers_data_sets() -> None:
    rows = rows_of(dataset="folder:cifar10.zip", **TWENTY)
    assert judged("fig13-20", *rows).why == "folder:cifar10.zip, not cifar10"
    assert judged("fig13-20", *rows, stand_ins={"folder:cifar10.zip": "cifar10"}).verdict == "reproduced"
    less = [{**row, "train_size": 10_000} for row in rows]
    assert judged("fig13-20", *less, stand_ins={"folder:cifar10.zip": "cifar10"}).verdict == "not comparable"


def test_controls_are_no_runs_of_a_claim() -> None:
    assert read_runs(spec_of(), [make_row("blended/P1/control", role="control")]) == []


@pytest.mark.parametrize(
    ("measure", "expected", "value", "met"),
    [
        ("asr", {"value": 0.044}, 0.1, True),
        ("asr", {"value": 0.044}, 0.1001, False),
        ("asr", {"value": 0.954}, 0.2, True),
        ("clean_accuracy", {"value": 0.919}, 0.899, True),
        ("clean_accuracy", {"value": 0.919}, 0.94, False),
        ("asr_before", {"value": 0.998}, 0.91, True),
        ("asr_before", {"value": 0.998}, 0.2, False),
        ("asr", {"above": 0.4}, 0.4, False),
        ("asr", {"at_least": -0.1, "at_most": 0.1}, -0.2, False),
        ("clean_accuracy", {"below": 0.0}, -0.001, True),
    ],
)
def test_the_tolerance(measure: str, expected: dict[str, float], value: float, met: bool) -> None:
    assert meets(PAPER.tolerance, measure, Expected(**expected), value) is met


def test_all_readings_are_known() -> None:
    assert set(PAPER.readings.needed) < set(READINGS)


def test_a_row_of_a_sweep_has_the_conditions_of_its_own_combination() -> None:
    sweep = {"attack.blended.alpha": [0.1, 0.2], "victim.lr": [0.001, 0.5]}
    spec = spec_of("sha", sweep=sweep)
    rows = []
    for name, values in zip(names_of(sweep), combinations_of(sweep), strict=True):
        rows += rows_of(asr=(0.03,), combination=name, swept=as_json(values))
    found = [
        (run.conditions["recipe"], run.conditions["attack_settings"], run.victim_lr) for run in read_runs(spec, rows)
    ]
    assert found == [
        ("sha", "alpha 0.1", 0.001),
        ("sha with lr 0.5", "alpha 0.1", 0.5),
        ("sha", "as published", 0.001),
        ("sha with lr 0.5", "as published", 0.5),
    ]


def test_a_sweep_that_names_no_recipe_is_read_with_that_of_each_data_set() -> None:
    sweep = {"dataset": ["cifar10", "digits"]}
    spec = make_spec({"attacks": ["blended"], "baselines": ["none"], "sweep": sweep})
    rows = [
        row
        for name, values in zip(names_of(sweep), combinations_of(sweep), strict=True)
        for row in rows_of(asr=(0.03,), combination=name, swept=as_json(values), **values)
    ]
    recipes = [run.conditions["recipe"] for run in read_runs(spec, rows)]
    assert recipes == [one.spec.victim.recipe for one in combinations(spec)]
    assert None not in recipes


def test_a_weight_decay_of_ones_own_is_another_recipe() -> None:
    (run,) = read_runs(spec_of("bb", victim={"weight_decay": 0.1}), rows_of(asr=(0.03,)))
    assert run.conditions["recipe"] == "bb with weight_decay 0.1"
