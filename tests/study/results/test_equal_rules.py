"""Equal trials, equal compute, intervals and sums of cost against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from study.record.columns import to_frame
from study.results import equal_rules
from study.results.intervals import Counted, estimate
from study.results.pareto import hypervolume, hypervolume_box
from tests.study.rows import failed_row, made_up_study, make_row, point
from trainables.evaluation.metrics import wilson

N_TRIGGERED, N_CLEAN = 243, 270  # of the report half
ONE_E = {"forward_samples": 1257, "backward_samples": 1257}


def _of(number: int, defense: str, asr: float, accuracy: float, epochs: float = 1.0, **changes: object) -> dict:
    work = {name: round(epochs * samples) for name, samples in ONE_E.items()}
    return make_row(f"badnets/{defense}/{number:04d}", asr=asr, clean_accuracy=accuracy, **work, **changes)


def _one(rows: list[dict], defense: str = "super_ft", attack: str = "badnets", **options: float) -> dict:
    table = equal_rules.parity(to_frame(rows), **options)
    (record,) = table[(table["defense_label"] == defense) & (table["attack"] == attack)].to_dict("records")
    return record


def test_areas_of_many_sets_of_points_are_their_hypervolumes() -> None:
    points = np.random.default_rng(0).random((50, 7, 2)).round(1)  # rounding makes ties
    expected = [hypervolume(one) for one in points]
    assert equal_rules.areas(points[..., 0], points[..., 1]) == pytest.approx(expected)
    expected = [hypervolume_box(one, 0.95) for one in points]
    assert equal_rules.box_areas(points[..., 0], points[..., 1], 0.95) == pytest.approx(expected)


def test_the_interval_of_a_point_at_full_accuracy_is_that_of_its_asr() -> None:
    # At accuracy 1 of very many images the area is 1 - ASR: its interval must be about Wilson's of 24 of 243.
    counted = Counted(np.array([[24 / 243]]), np.array([[1.0]]), np.array([243.0]), np.array([1e9]), np.array([0]))
    one = estimate(counted, equal_rules.areas, draws=20_000)
    low, high = wilson(24, 243)
    assert (1 - one.high, 1 - one.low) == pytest.approx((low, high), abs=0.003)


def test_no_hit_of_n_images_is_not_certainty() -> None:
    record = _one([point(0, 0.0, 1.0)])
    assert (record["hypervolume_all"], record["hypervolume_all_high"]) == (1.0, 1.0)
    assert 1 - 6 / N_TRIGGERED < record["hypervolume_all_low"] < 1 - 1 / N_TRIGGERED


def test_many_points_on_the_same_images_are_no_more_certain_than_one() -> None:
    def width(count: int) -> float:
        rows = [point(i, 0.1 + 1e-9 * i, 0.9 + 1e-9 * i) for i in range(count)]
        record = _one(rows)
        return record["hypervolume_all_high"] - record["hypervolume_all_low"]

    assert width(8) == pytest.approx(width(1), rel=0.15)


def test_the_interval_is_the_same_every_time_and_holds_its_value() -> None:
    frame = to_frame(made_up_study(defenses=("fst", "super_ft"), trials=12))
    table = equal_rules.parity(frame)
    assert table.equals(equal_rules.parity(frame))
    for rule in equal_rules.RULES:
        for key in ("hypervolume", "box"):
            low, value, high = (table[f"{key}_{rule}{end}"] for end in ("_low", "", "_high"))
            assert ((low <= value) & (value <= high)).all()
            assert ((low < high) | (key == "box")).all()


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(asrs: tuple[float, ...]) -> float:
        record = _one([point(0, asr, 0.9, seed=seed) for seed, asr in enumerate(asrs)])
        return record["hypervolume_all_high"] - record["hypervolume_all_low"]

    assert width((0.0, 0.2, 0.4)) > 2 * width((0.2, 0.2, 0.2))


def test_defenders_that_differ_widen_the_interval_through_their_attackers_alone() -> None:
    """Three victims with two defenders each: what is known of other attackers are the means of these."""

    def width(asrs: tuple[tuple[float, float], ...]) -> float:
        cells = [(seed, own, asr) for seed, pair in enumerate(asrs) for own, asr in enumerate(pair)]
        record = _one([point(0, asr, 0.9, seed=seed, defense_seed=own) for seed, own, asr in cells])
        return record["hypervolume_all_high"] - record["hypervolume_all_low"]

    pairs = (((0.2, 0.2),) * 3, ((0.0, 0.4),) * 3, ((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)))
    alike, within, between = (width(asrs) for asrs in pairs)
    assert within == pytest.approx(alike, rel=0.3)
    assert between > 2 * alike


def test_equal_trials_are_the_first_of_each_and_equal_compute_what_each_did_within_the_least_total() -> None:
    # a: three settings of 2 E; b: one of 1 E, then a better one of 3 E. Equal trials: 2. Equal compute: 4 E.
    rows = [_of(i, "a", asr, 0.9, 2.0) for i, asr in enumerate((0.5, 0.4, 0.1))]
    rows += [_of(0, "b", 0.5, 0.9, 1.0), _of(1, "b", 0.2, 0.9, 3.0)]
    a, b = _one(rows, "a"), _one(rows, "b")
    assert (a["equal_trials"], a["equal_epochs"]) == (2, pytest.approx(4.0))
    assert [a[f"settings_{rule}"] for rule in equal_rules.RULES] == [3, 2, 2]
    assert [b[f"settings_{rule}"] for rule in equal_rules.RULES] == [2, 2, 2]
    assert a["hypervolume_all"] == pytest.approx(0.9 * 0.9)
    assert a["hypervolume_trials"] == a["hypervolume_compute"] == pytest.approx(0.6 * 0.9)
    assert b["epochs_compute"] == pytest.approx(4.0)


def test_a_defense_that_costs_nothing_does_not_cut_the_others_to_nothing() -> None:
    rows = [_of(i, "free", 0.5, 0.9, 0.0) for i in range(4)]
    rows += [_of(i, "dear", 0.4 - 0.1 * i, 0.9, 5.0) for i in range(3)]
    free, dear = _one(rows, "free"), _one(rows, "dear")
    assert free["equal_epochs"] == pytest.approx(5.0)
    assert (free["settings_compute"], dear["settings_compute"]) == (4, 1)


def test_a_published_setting_beyond_the_budget_is_no_part_of_equal_compute() -> None:
    rows = [_of(0, "a", 0.5, 0.9, 10.0, published=True), _of(1, "a", 0.3, 0.8, 2.0), _of(2, "a", 0.1, 0.9, 2.0)]
    rows += [_of(0, "b", 0.5, 0.9, 2.0, published=True), _of(1, "b", 0.4, 0.9, 2.0)]
    a, b = (_one(rows, name, budget_epochs=3.0) for name in ("a", "b"))
    assert (a["settings_compute"], a["epochs_compute"]) == (1, pytest.approx(2.0))
    assert a["hypervolume_compute"] == pytest.approx(0.7 * 0.8)
    assert (a["settings_all"], a["epochs_all"]) == (3, pytest.approx(14.0))
    assert (b["settings_compute"], b["equal_epochs"]) == (1, 3.0)


def test_a_search_that_has_nothing_within_the_budget_has_no_hypervolume_there() -> None:
    rows = [_of(0, "a", 0.5, 0.9, 10.0, published=True), _of(0, "b", 0.5, 0.9, 2.0, published=True)]
    a = _one(rows, "a", budget_epochs=3.0)
    assert a["settings_compute"] == 0
    assert np.isnan(a["hypervolume_compute"])
    assert a["hypervolume_all"] == pytest.approx(0.5 * 0.9)


def test_equal_trials_are_for_searches_that_have_them() -> None:
    rows = [_of(i, "long", 0.5, 0.9) for i in range(6)] + [_of(i, "half", 0.5, 0.9) for i in range(3)]
    rows += [_of(i, "short", 0.5, 0.9) for i in range(2)]
    long, half, short = (_one(rows, name) for name in ("long", "half", "short"))
    assert (long["equal_trials"], long["settings_trials"], half["settings_trials"]) == (3, 3, 3)
    assert np.isnan(short["settings_trials"])
    assert np.isnan(short["hypervolume_trials"])
    assert np.isnan(_one(rows[:6] + rows[9:], "short")["equal_trials"])  # one search alone is compared with nobody


def test_a_dropped_setting_is_charged_for_the_cells_that_it_took() -> None:
    rows = [_of(0, "a", 0.5, 0.9, 10.0, seed=seed) for seed in range(6)]
    rows += [_of(1, "a", 0.9, 0.3, 10.0, seed=seed, dropped_by="badnets/a/0000") for seed in range(2)]
    rows += [_of(i, "b", 0.5, 0.9, 10.0, seed=seed) for i in range(2) for seed in range(6)]
    a = _one(rows, "a")
    assert a["epochs_all"] == pytest.approx(10.0 + 2 / 6 * 10.0)
    spent = equal_rules.search_costs(to_frame(rows))
    assert 6 * a["epochs_all"] == pytest.approx(spent.loc[spent["defense_label"] == "a", "epochs"].iloc[0])


def test_failed_settings_use_up_trials_and_compute() -> None:
    rows = [_of(0, "a", 0.5, 0.9), failed_row("badnets/a/0001"), _of(2, "a", 0.1, 0.9)]
    rows += [_of(i, "b", 0.5, 0.9) for i in range(2)]
    assert _one(rows, "a")["hypervolume_trials"] == pytest.approx(0.5 * 0.9)
    assert _one(rows, "a")["settings_trials"] == 2


def test_a_search_whose_models_all_collapsed_has_no_area() -> None:
    record = _one([point(0, 0.0, 0.1, collapsed=True)])
    assert (record["hypervolume_all"], record["hypervolume_all_high"]) == (0.0, 0.0)


def test_hypervolumes_are_those_of_the_report_half() -> None:
    record = _one([point(0, 0.1, 0.985, asr_search=0.0, clean_accuracy_search=1.0, clean_accuracy_before=0.95)])
    # CA_before is .985 on that half: (.1, .985) is half of the box up to there.
    assert record["hypervolume_all"] == pytest.approx(0.9 * 0.985)
    assert record["box_all"] == pytest.approx(0.5)
    lossy = _one([point(0, 0.1, 0.935, clean_accuracy_before=0.95)])
    assert lossy["box_all"] == pytest.approx(0.25)


def test_a_search_alone_has_its_hypervolume_and_no_rules() -> None:
    record = _one([point(0, 0.2, 0.9)])
    assert record["hypervolume_all"] == pytest.approx(0.8 * 0.9)
    assert np.isnan(record["equal_trials"])
    assert np.isnan(record["hypervolume_trials"])


def test_searches_over_all_attacks_have_a_row_of_means() -> None:
    frame = to_frame(made_up_study(trials=4, per="all", seeds=(0, 1)))
    table = equal_rules.parity(frame)
    assert sorted(table["attack"]) == ["all", "badnets", "blended"]
    assert (table["hypervolume_all_low"] < table["hypervolume_all_high"]).all()


def test_models_without_a_backdoor_have_no_hypervolume() -> None:
    rows = [point(0, 0.0, 1.0, status="backdoor_not_implanted"), point(1, 0.0, 1.0, status="abstained")]
    assert equal_rules.parity(to_frame(rows)).empty
    assert equal_rules.search_costs(to_frame(rows))["no_backdoor"].tolist() == [2]


def test_rows_without_counts_have_values_without_intervals() -> None:
    record = _one([point(0, 0.2, 0.9, n_clean_report=None)])
    assert record["hypervolume_all_low"] == record["hypervolume_all_high"] == record["hypervolume_all"]


def test_the_cost_of_a_search_is_the_sum_over_all_of_its_trials_whatever_came_of_them() -> None:
    rows = [
        _of(0, "a", 0.5, 0.9, 2.0, wall_seconds=3.0),
        _of(1, "a", 1.0, 0.0, 1.0, status="diverged", wall_seconds=1.0),
        _of(2, "a", 0.9, 0.9, 1.0, status="abstained", wall_seconds=1.0),
        _of(3, "a", 0.0, 0.1, 1.0, collapsed=True, wall_seconds=1.0),
        _of(4, "a", 0.5, 0.9, 0.0, wall_seconds=1.0, reused_forward_samples=1257, reused_backward_samples=1257),
        failed_row("badnets/a/0005", wall_seconds=0.5, forward_samples=None, backward_samples=None, train_size=None),
        make_row("badnets/ft/baseline"),
    ]
    (cost,) = equal_rules.search_costs(to_frame(rows)).to_dict("records")
    assert {name: cost[name] for name in equal_rules.OUTCOMES} == {
        "ok": 2,
        "abstained": 1,
        "collapsed": 1,
        "diverged": 1,
        "failed": 1,
    }
    assert (cost["settings"], cost["trials"], cost["seconds"]) == (6, 6, 7.5)
    assert (cost["epochs"], cost["epochs_found"]) == (pytest.approx(5.0), pytest.approx(1.0))


def test_gpu_seconds_count_of_every_trial_its_share_of_a_gpu() -> None:
    rows = [point(0, 0.5, 0.9, wall_seconds=8.0, gpus=0.25), point(1, 0.5, 0.9, wall_seconds=8.0, gpus=1.0)]
    rows += [point(2, 0.5, 0.9, wall_seconds=8.0), failed_row("badnets/super_ft/0003", wall_seconds=None, gpus=1.0)]
    assert equal_rules.search_costs(to_frame(rows))["gpu_seconds"].tolist() == [10.0]


def test_without_a_gpu_there_are_no_gpu_seconds() -> None:
    assert equal_rules.search_costs(to_frame([point(0, 0.5, 0.9)]))["gpu_seconds"].tolist() == [0.0]
