"""Front, hypervolume, knee and picks against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from study.record.columns import to_frame
from study.results.fronts import FRONT_COLUMNS, compare, fronts, hypervolume_over_trials
from study.results.in_words import settings_of, settings_text
from study.results.pareto import RunningFront, hypervolume, hypervolume_box, knee, non_dominated_indices, picks
from study.results.rows import charged_epochs
from study.results.settings import aggregate
from tests.study.rows import failed_row, made_up_study, make_row, point

# ASR .5 / .2 / .1 at CA .99 / .97 / .90; the point (.3, .95) is beaten by (.2, .97).
FOUR = [(0.5, 0.99), (0.2, 0.97), (0.3, 0.95), (0.1, 0.90)]


def test_front_of_known_points() -> None:
    assert non_dominated_indices(FOUR) == [3, 1, 0]


def test_of_equal_points_the_first_stays_on_the_front() -> None:
    assert non_dominated_indices([(0.2, 0.9), (0.1, 0.8), (0.2, 0.9), (0.1, 0.8)]) == [1, 0]


def test_a_single_point_has_hypervolume_one_minus_asr_times_accuracy() -> None:
    assert hypervolume([(0.2, 0.9)]) == pytest.approx(0.8 * 0.9)
    assert hypervolume([]) == 0.0
    assert hypervolume([(0.0, 1.0)]) == 1.0
    assert hypervolume([(1.0, 0.0)]) == 0.0


def test_hypervolume_of_known_points() -> None:
    assert hypervolume(FOUR) == pytest.approx(0.1 * 0.90 + 0.3 * 0.97 + 0.5 * 0.99)


def test_a_dominated_point_changes_nothing() -> None:
    without = [FOUR[0], FOUR[1], FOUR[3]]
    assert hypervolume(FOUR) == hypervolume(without)
    assert hypervolume_box(FOUR, 0.98) == hypervolume_box(without, 0.98)
    assert FOUR[knee(FOUR)] == without[knee(without)]


@pytest.mark.parametrize("n", [1, 2, 7, 200])
def test_hypervolume_and_running_front_agree_with_optuna(n: int) -> None:
    points = np.random.default_rng(n).random((n, 2)).round(2)  # rounding makes ties
    expected = compute_hypervolume(np.column_stack([points[:, 0], -points[:, 1]]), np.array([1.0, 0.0]))
    running = RunningFront()
    joined = [running.add(asr, accuracy, (1.0 - asr, accuracy)) for asr, accuracy in points]
    assert hypervolume(points) == pytest.approx(expected)
    assert running.hypervolume == pytest.approx(expected)
    assert running.points == [tuple(points[i]) for i in non_dominated_indices(points)]
    assert running.elsewhere == [(1.0 - asr, accuracy) for asr, accuracy in running.points]
    assert joined[0]
    assert not running.add(*running.points[0])


def test_second_box_counts_only_little_asr_at_little_loss() -> None:
    # Box of CA_before .95: ASR 0-.2, CA .85-.95. The point (.1, .90) is its middle.
    assert hypervolume_box([(0.1, 0.90)], 0.95) == pytest.approx(0.25)
    assert hypervolume_box([(0.0, 0.95)], 0.95) == pytest.approx(1.0)
    assert hypervolume_box([(0.0, 0.99)], 0.95) == pytest.approx(1.0), "accuracy gained does not count"
    assert hypervolume_box([(0.2, 0.95), (0.0, 0.85), (1.0, 1.0)], 0.95) == 0.0


def test_knee_is_the_front_point_farthest_from_the_chord() -> None:
    # Scaled to the unit square the inner points are (.25, .9) and (.5, .95): CA - ASR is .65 and .45.
    points = [(0.0, 0.90), (0.25, 0.99), (0.5, 0.995), (1.0, 1.0)]
    assert knee(points) == 1
    assert knee([*points, (0.4, 0.2)]) == 1, "a dominated point is no knee"


def test_knee_of_two_equal_distances_has_the_higher_accuracy() -> None:
    assert knee([(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)]) is None
    assert knee([(0.0, 0.85), (1.0, 0.99)]) is None
    # A dent on the bad side: its accurate end repairs nothing.
    assert knee([(0.0, 0.85), (0.5, 0.90), (1.0, 0.99)]) is None
    assert knee([(0.3, 0.9)]) == 0
    with pytest.raises(ValueError, match="no points"):
        knee([])


def test_a_dent_on_the_bad_side_of_the_chord_is_no_knee() -> None:
    # (.9, .1) scaled lies far from the chord, but towards more ASR and less accuracy; (.2, .3) lies a little below it.
    assert knee([(0.0, 0.0), (0.2, 0.3), (0.9, 0.5), (1.0, 1.0)]) == 1


def test_picks_are_least_asr_within_each_loss_of_accuracy() -> None:
    # CA_before .98: floors .975, .970, .960, .930.
    points = [(0.9, 0.98), (0.5, 0.975), (0.3, 0.969), (0.1, 0.94), (0.0, 0.5)]
    assert picks(points, 0.99, 0.98) == {"drop_0.5": 1, "drop_1": 1, "drop_2": 2, "drop_5": 3, "max_der": 3}


def test_max_der_never_picks_a_ruined_model() -> None:
    # DER of (0, .5) is (1 - .48 + 1)/2 = .76, of (.9, .98) .55: only the latter kept its accuracy.
    assert picks([(0.0, 0.5), (0.9, 0.98)], 1.0, 0.98)["max_der"] == 1
    assert picks([(0.0, 0.5)], 1.0, 0.98) == {}


def test_points_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        hypervolume([(float("nan"), 0.5)])


def test_front_ignores_dominated_trials_failures_and_absent_backdoors() -> None:
    rows = [point(i, *place) for i, place in enumerate(FOUR)]
    rows.append(failed_row("badnets/super_ft/0009"))
    rows.append(point(10, 0.0, 1.0, status="backdoor_not_implanted", seed=1))
    rows.append(make_row("badnets/scratch/baseline", asr=0.0, clean_accuracy=1.0))
    members = fronts(to_frame(rows))
    assert members["trial"].str[-4:].tolist() == ["0003", "0001", "0000"]
    assert members["rank"].tolist() == [1, 2, 3]


def test_a_diverged_trial_is_an_ordinary_bad_point() -> None:
    worst = point(0, 1.0, 0.0, status="diverged", robust_accuracy=0.0)
    assert fronts(to_frame([worst]))["trial"].tolist() == ["badnets/super_ft/0000"]
    assert fronts(to_frame([worst, point(1, 0.5, 0.5)]))["trial"].tolist() == ["badnets/super_ft/0001"]


def test_the_front_is_chosen_on_the_search_half_and_read_on_the_report_half() -> None:
    lucky = point(0, 0.0, 0.9, asr_search=0.1, asr_report=0.4, clean_accuracy_report=0.8)
    unlucky = point(1, 0.0, 0.9, asr_search=0.2, asr_report=0.0, clean_accuracy_report=1.0)
    frame = to_frame([lucky, unlucky])
    (member,) = fronts(frame).to_dict("records")
    assert member["trial"] == "badnets/super_ft/0000"
    assert (member["asr_search"], member["asr_report"]) == (0.1, 0.4)
    curve = hypervolume_over_trials(frame)
    assert curve["search"].tolist() == pytest.approx([0.9 * 0.9] * 2)
    assert curve["report"].tolist() == pytest.approx([0.6 * 0.8] * 2)


def test_hypervolume_over_trials_ends_at_the_hypervolume_of_the_front() -> None:
    frame = to_frame(made_up_study())
    members = fronts(frame)
    for attack, curve in hypervolume_over_trials(frame).groupby("attack"):
        own = members[members["attack"] == attack]
        for half in ("search", "report"):
            expected = hypervolume(own[[f"asr_{half}", f"clean_accuracy_{half}"]].to_numpy())
            assert curve[half].iloc[-1] == pytest.approx(expected)
        assert curve["search"].is_monotonic_increasing
        assert curve["finished"].tolist() == list(range(1, len(curve) + 1))


def test_a_setting_is_the_mean_over_its_seeds() -> None:
    rows = [point(0, asr, 0.9, seed=seed) for seed, asr in enumerate((0.0, 0.3))]
    (setting,) = aggregate(to_frame(rows)).to_dict("records")
    assert setting["asr_report"] == pytest.approx(0.15)
    assert (setting["asr_report_min"], setting["asr_report_max"], setting["cells"]) == (0.0, 0.3, 2)
    assert setting["n_triggered_report"] == 243, "both runs share their images"
    assert setting["complete"]


def test_an_abstention_counts_as_no_repair_in_the_mean_over_seeds() -> None:
    rows = [point(0, 0.1, 0.9, seed=0), point(0, 0.99, 0.98, seed=1, status="abstained")]
    (setting,) = aggregate(to_frame(rows)).to_dict("records")
    assert (setting["asr_report"], setting["cells"]) == (pytest.approx(0.545), 2)
    assert (setting["status"], setting["complete"]) == ("abstained", True)


def test_a_setting_that_lacks_a_seed_is_no_rival_yet() -> None:
    rows = [point(0, 0.2, 0.9, seed=0), point(0, 0.2, 0.9, seed=1), point(1, 0.0, 1.0, seed=0)]
    assert fronts(to_frame(rows))["trial"].tolist() == ["badnets/super_ft/0000"]
    failed = {**failed_row("badnets/super_ft/0001"), "seed": 1}
    assert fronts(to_frame([*rows, failed]))["trial"].tolist() == ["badnets/super_ft/0000"]
    assert len(fronts(to_frame([*rows, point(1, 0.0, 1.0, seed=1)]))) == 1


def test_a_seed_without_a_backdoor_is_left_out_for_every_setting() -> None:
    rows = [point(i, 0.2, 0.9, seed=0) for i in range(2)]
    rows += [point(i, 0.0, 0.9, seed=1, status="backdoor_not_implanted") for i in range(2)]
    table = aggregate(to_frame(rows))
    assert table["asr_report"].tolist() == [0.2, 0.2]
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["complete"].all()


@pytest.mark.parametrize("status", ["abstained", "diverged"])
def test_what_happened_on_a_model_without_a_backdoor_is_no_result_whatever_its_status(status: str) -> None:
    rows = [point(0, 0.2, 0.9, status="backdoor_not_implanted"), point(1, 0.1, 0.95, status=status)]
    table = aggregate(to_frame(rows))
    assert table["status"].tolist() == ["backdoor_not_implanted"] * 2
    assert table["asr_report"].isna().all()
    assert fronts(to_frame(rows)).empty


def test_a_collapsed_model_is_on_no_front_but_used_up_a_trial() -> None:
    points = [(0.01, 0.90), (0.3, 0.97), (0.5, 0.99)]
    rows = [point(i, *place) for i, place in enumerate(points)]
    rows.append(point(3, 0.0, 0.1, flags=["retraining_reused"], collapsed=True))
    frame = to_frame(rows)
    members = fronts(frame)
    assert members["trial"].str[-4:].tolist() == ["0000", "0001", "0002"]
    # CA - ASR of the scaled (.3, .97): .78 - .59 between these ends; were (0, .1) one of them, (.01, .90) would win
    # with .90 - .02.
    assert members.loc[members["is_knee"], "trial"].str[-4:].tolist() == ["0001"]
    curve = hypervolume_over_trials(frame)
    assert curve["finished"].tolist() == [1, 2, 3, 4]
    assert curve["search"].iloc[-1] == curve["search"].iloc[-2]


def test_a_seed_on_which_a_setting_collapsed_is_not_hidden_by_another_seed() -> None:
    rows = [point(0, 0.2, 0.9, seed=0), point(0, 0.0, 0.1, seed=1, collapsed=True)]
    (setting,) = aggregate(to_frame(rows)).to_dict("records")
    assert setting["collapsed"]


def test_work_that_was_found_ready_made_counts_for_a_setting_alone() -> None:
    # One epoch done and two found: 1 E spent in the search, 3 E had it been the only setting.
    work = {"forward_samples": 1257, "backward_samples": 1257}
    row = point(0, 0.1, 0.9, **work, **{f"reused_{key}": 2 * value for key, value in work.items()})
    frame = to_frame([row])
    assert charged_epochs(frame)[0] == pytest.approx(1.0)
    assert charged_epochs(frame, alone=True)[0] == pytest.approx(3.0)


def test_settings_scored_on_all_attacks_have_a_front_of_their_means() -> None:
    rows = [point(0, asr, 0.9, attack=attack) for attack, asr in (("badnets", 0.0), ("blended", 0.4))]
    members = fronts(to_frame(rows))
    assert dict(zip(members["attack"], members["asr_report"], strict=True)) == {
        "all": pytest.approx(0.2),
        "badnets": 0.0,
        "blended": 0.4,
    }


def test_one_e_is_an_epoch_over_the_attackers_training_set() -> None:
    # One epoch of N samples: N forward, N backward, so (N + 2N) / 3N = 1.
    rows = [point(0, 0.1, 0.9, forward_samples=1257, backward_samples=1257), point(1, 0.1, 0.9, train_size=None)]
    cost = charged_epochs(to_frame(rows))
    assert cost[0] == pytest.approx(1.0)
    assert np.isnan(cost[1])


def test_accuracy_before_on_the_search_half_follows_from_counts() -> None:
    # 540 images, 0.90 right of all, 0.80 right of 270: 1.00 right of the other 270.
    row = point(0, 0.1, 0.9, clean_accuracy_before=0.9, clean_accuracy_before_report=0.8)
    assert aggregate(to_frame([row]))["clean_accuracy_before_search"][0] == pytest.approx(1.0)


def test_knee_and_picks_are_marked_on_the_front() -> None:
    members = fronts(to_frame([point(i, *place) for i, place in enumerate(FOUR)]))
    assert members.loc[members["is_knee"], "trial"].tolist() == ["badnets/super_ft/0001"]
    # CA_before .985: .5 and 1 points allow only (.5, .99), 2 and 5 points (.2, .97) too, 10 points also (.1, .90).
    # DER of (.1, .90): (.89 - .085 + 1)/2 = .9025; of (.2, .97): (.79 - .015 + 1)/2 = .8875.
    assert members["picks"].tolist() == ["max_der", "drop_2;drop_5", "drop_0.5;drop_1"]


def test_compare_puts_studies_side_by_side_per_group() -> None:
    one, two = to_frame([point(0, 0.05, 0.9)]), to_frame([point(0, 0.5, 0.9), point(1, 0.2, 0.9)])
    table = compare({"A": one, "B": two})
    assert table["study"].tolist() == ["A", "B"]
    assert table["trials"].tolist() == [1, 2]
    assert table["hypervolume_report"].tolist() == pytest.approx([0.95 * 0.9, 0.8 * 0.9])
    assert table["best_clean_accuracy"].fillna(-1).tolist() == [0.9, -1]
    assert compare({"A": to_frame([])}).empty


def test_settings_of_another_defense_are_not_shown() -> None:
    frame = to_frame(
        [point(0, 0.1, 0.9, **{"param.iterations": 500, "param.lr_max1": 0.1}), make_row(**{"param.lr": 1e-4})]
    )
    assert settings_of(frame.iloc[0]) == {"iterations": 500, "lr_max1": 0.1}
    assert settings_text(frame.iloc[1]) == "lr=0.0001"


def test_an_empty_ledger_has_empty_tables() -> None:
    frame = to_frame([])
    assert fronts(frame).empty
    assert hypervolume_over_trials(frame).empty
    assert list(fronts(frame).columns) == list(FRONT_COLUMNS)
