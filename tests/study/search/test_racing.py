"""The statistics of racing: what the bounds promise, how often a good setting is dropped, what a front can lose."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from study.results.pareto import hypervolume
from study.search.racing import AccuracyBound, Race, _Rivals, least_asr

Array = NDArray[np.float64]
Place = tuple[str, int, int]
PLACES: list[Place] = [(attack, 0, own) for attack in ("badnets", "blended", "wanet") for own in (0, 1)]
EFFECTS = np.array([0.012, -0.012, 0.01, -0.014, 0.013, -0.009])  # of the cells; the settings' deviations are 0.01


def by_place(values: Array) -> dict[Place, tuple[float, float]]:
    """(cells, 2) -> the values of one setting."""
    return {place: (float(one[0]), float(one[1])) for place, one in zip(PLACES, values, strict=True)}


def raced(values: Array, alpha: float, margin: float = 0.0, seed: int = 0) -> tuple[list[int], int]:
    """One search over settings, (settings, cells, 2), one after the other: those measured on all cells, and the rows.

    The first is never dropped.
    """
    race = Race(PLACES, alpha=alpha, margin=margin, settings=len(values), seed=seed)
    whole, rows = [], 0
    for number, own in enumerate(map(by_place, values)):
        seen: dict[Place, tuple[float, float]] = {}
        for place in race.order(str(number)):
            seen[place] = own[place]
            rows += 1
            if number and race.rival(str(number), seen) is not None:
                race.drop(str(number))
                break
        else:
            race.add(str(number), own)
            whole.append(number)
    return whole, rows


def is_good(point: Array, rivals: Array, margin: float) -> bool:
    """Whether no rival dominates a point up to the margin."""
    near = (rivals[:, 0] <= point[0] + margin) & (rivals[:, 1] >= point[1] - margin)
    return not bool((near & ((rivals[:, 0] < point[0]) | (rivals[:, 1] > point[1]))).any())


def made_up(draw: np.random.Generator, accuracies: Array, asrs: Array) -> Array:
    """Settings of these means: accuracies with effects of cells and normal deviations; ASRs of a repair that worked,
    or, with a probability that gives the mean, did not."""
    accuracy = accuracies[:, None] + EFFECTS + draw.normal(0, 0.01, (len(accuracies), len(PLACES)))
    failed = draw.random((len(asrs), len(PLACES))) < asrs[:, None]
    asr = np.where(failed, draw.uniform(0.6, 1.0, failed.shape), draw.choice([0.0, 0.0, 0.004], failed.shape))
    return np.stack([asr, np.minimum(accuracy, 1.0)], axis=2)


# -- the bounds -------------------------------------------------------------------------------------------------------


def test_the_least_asr_is_reached_if_all_other_cells_have_none() -> None:
    assert least_asr([0.3, 0.06], 6) == pytest.approx(0.06)


@pytest.mark.parametrize("done", [1, 2, 5])
def test_the_most_accuracy_is_exceeded_as_often_as_it_says(done: int) -> None:
    """2,000 draws of a chance of 1 in 10: three standard deviations are 0.02."""
    draw, exceeded = np.random.default_rng(done), 0
    for _ in range(2000):
        values = 0.8 + EFFECTS + draw.normal(0, 0.01, (4, len(PLACES))) + draw.normal(0, 0.05, (4, 1))
        bound = AccuracyBound(values[:3])
        places = draw.permutation(len(PLACES))[:done]
        exceeded += values[3].mean() > bound.most([*places], [*values[3, places]], 0.1)
    assert exceeded / 2000 == pytest.approx(0.1, abs=0.02)


def test_accuracy_that_no_missing_cell_can_make_up_for_needs_no_statistics() -> None:
    one = AccuracyBound(np.full((1, 6), 0.97))  # of one setting nothing is known of deviations
    assert one.most([2], [0.4], 1e-9) == pytest.approx((0.4 + 5) / 6)
    many = AccuracyBound(0.97 + np.random.default_rng(0).normal(0, 0.2, (3, 6)))
    assert many.most([2], [0.4], 1e-9) == pytest.approx((0.4 + 5) / 6), "wide deviations say less"


def test_cells_are_compared_with_themselves() -> None:
    """The hard cell of all settings is no sign of a bad one; with its effect left out the bound is the same as of
    the easy cell."""
    known = 0.9 + EFFECTS + np.random.default_rng(1).normal(0, 1e-4, (5, 6))
    bound = AccuracyBound(known)
    hard, easy = (bound.most([cell], [0.9 + EFFECTS[cell]], 0.01) for cell in (3, 4))
    assert hard == pytest.approx(easy, abs=1e-3)


# -- what is dropped --------------------------------------------------------------------------------------------------


def race_of(*known: tuple[float, float], margin: float = 0.005, settings: int = 20) -> Race:
    race = Race(PLACES, alpha=0.05, margin=margin, settings=settings, seed=3)
    draw = np.random.default_rng(0)
    for number, (asr, accuracy) in enumerate(known):
        values = made_up(draw, np.array([accuracy]), np.array([0.0]))[0]
        values[:, 0] = asr
        race.add(f"known-{number}", by_place(values))
    return race


def rival(race: Race, asr: float, accuracy: float, cells: int, trial: str = "new") -> str | None:
    seen = race.order(trial)[:cells]
    return race.rival(trial, {place: (asr, accuracy + EFFECTS[PLACES.index(place)]) for place in seen})


def test_a_ruined_model_is_out_after_its_first_cell_and_by_the_setting_that_is_better() -> None:
    race = race_of((0.002, 0.96), (0.002, 0.955), (0.5, 0.98), (0.004, 0.95))
    assert rival(race, 0.9, 0.3, cells=1) == "known-0"
    assert rival(race, 0.0, 0.8, cells=1) == "known-0", "no ASR is 0.005 better than that"


def test_both_rates_must_be_worse_than_those_of_one_rival() -> None:
    """Between two members of a front: worse in ASR than one, worse in accuracy than the other."""
    race = race_of((0.0, 0.94), (0.5, 0.98), (0.002, 0.93), (0.6, 0.97))
    assert [rival(race, 0.25, 0.965, cells) for cells in range(1, 6)] == [None] * 5
    assert rival(race, 0.25, 0.8, cells=2) == "known-0"


def test_a_margin_of_nothing_keeps_whoever_may_be_better_at_all() -> None:
    known = ((0.003, 0.96), (0.003, 0.955), (0.004, 0.95))
    assert rival(race_of(*known), 0.0, 0.8, cells=5) == "known-0"
    assert rival(race_of(*known, margin=0.0), 0.0, 0.8, cells=5) is None


def test_nothing_is_dropped_without_a_rival_or_when_nothing_is_left_to_save() -> None:
    assert rival(race_of(), 1.0, 0.0, cells=5) is None
    assert rival(race_of((0.0, 0.96)), 1.0, 0.0, cells=0) is None
    assert rival(race_of((0.0, 0.96)), 1.0, 0.0, cells=6) is None
    alone = Race(PLACES[:1], alpha=0.05, margin=0.0, settings=2, seed=0)
    alone.add("a", {PLACES[0]: (0.0, 1.0)})
    assert alone.rival("b", {PLACES[0]: (1.0, 0.0)}) is None


def test_the_beaten_are_those_with_somebody_ahead_of_them() -> None:
    draw = np.random.default_rng(0)
    for margin in (0.0, 0.02):
        values = {f"{number:03d}": np.round(draw.uniform(0, 1, (3, 2)), 1) for number in range(60)}
        rivals = _Rivals(values, margin)
        ahead = [rivals.ahead_of(*one.mean(axis=0), margin) for one in values.values()]
        assert rivals.beaten == sum(one is not None for one in ahead)
        assert 0 < rivals.beaten < 60


def test_what_counts_is_the_beginning_of_the_drawn_order() -> None:
    """What ended first, because it diverged, says nothing while the cells before it still run."""
    race = race_of((0.0, 0.96), (0.0, 0.955))
    order = race.order("new")
    assert race.rival("new", dict.fromkeys(order[1:4], (1.0, 0.0))) is None
    assert race.rival("new", dict.fromkeys(order[:1], (1.0, 0.0))) == "known-0"


def test_the_order_is_drawn_for_each_setting_and_again_the_same() -> None:
    race, other = race_of(), Race(PLACES[::-1], alpha=0.5, margin=0.1, settings=3, seed=3)
    orders = [race.order(f"all/super_ft/{number:04d}") for number in range(200)]
    assert orders == [other.order(f"all/super_ft/{number:04d}") for number in range(200)]
    first = [orders.count(order) for order in orders]
    assert max(first) < 5
    counts = [sum(order[0] == place for order in orders) for place in PLACES]
    assert min(counts) > 15, "33 each, standard deviation 5"


def test_the_verdict_does_not_depend_on_who_was_measured_first() -> None:
    draw = np.random.default_rng(4)
    values = made_up(draw, draw.uniform(0.9, 0.97, 12), np.zeros(12))
    names = [f"setting-{number}" for number in range(12)]
    verdicts = []
    for order in (range(12), reversed(range(12))):
        race = Race(PLACES, alpha=0.05, margin=0.0, settings=20, seed=0)
        for number in order:
            race.add(names[number], by_place(values[number]))
        verdicts.append([rival(race, 0.002, accuracy, 2, "new") for accuracy in np.linspace(0.8, 0.97, 100)])
    assert verdicts[0] == verdicts[1]
    assert len(set(verdicts[0])) > 1


def test_settings_known_to_be_beaten_leave_their_chance_to_the_others() -> None:
    """At the same deviations the bound of the last settings is tighter than that of the first."""
    race = race_of((0.002, 0.96), (0.002, 0.957), (0.002, 0.955), settings=2000)
    undecided = [a for a in np.linspace(0.85, 0.96, 200) if rival(race, 0.03, a, 1) is None]
    for number in range(1990):
        race.drop(f"gone-{number}")
    later = [a for a in np.linspace(0.85, 0.96, 200) if rival(race, 0.03, a, 1) is None]
    assert len(later) < len(undecided)


# -- error rate and saving --------------------------------------------------------------------------------------------

# (accuracy, ASR) that settings are drawn from. Three places of one front with equals on each, beside bad ones; and six
# settings that differ by luck alone, beside twelve that are worse and worse.
FRONT = [(0.96, 0.0)] * 4 + [(0.972, 0.15)] * 2 + [(0.98, 0.6)] * 2
BAD = [(0.95, 0.0), (0.94, 0.0), (0.93, 0.0), (0.9, 0.0), (0.8, 0.1), (0.6, 0.1), (0.97, 0.8), (0.96, 0.9)]
EQUALS = [(0.96, 0.0)] * 6 + [(float(accuracy), 0.0) for accuracy in np.linspace(0.5, 0.93, 12)]


@pytest.mark.parametrize("means", [FRONT + BAD, EQUALS], ids=["front", "equals"])
@pytest.mark.parametrize("margin", [0.0, 0.005])
def test_who_belongs_on_the_front_is_dropped_in_at_most_alpha_of_the_searches(
    margin: float, means: list[tuple[float, float]]
) -> None:
    """Who belongs there is known, since every setting has values on all cells. And no front loses more than twice the
    margin, but in these searches."""
    alpha, count, wrong, used = 0.2, 60, 0, 0
    for seed in range(count):
        draw = np.random.default_rng(seed)
        accuracy, asr = np.array(means)[draw.permutation(len(means))].T
        values = made_up(draw, accuracy, asr)
        whole, rows = raced(values, alpha, margin, seed)
        points, used = values.mean(axis=1), used + rows
        lost = [number for number in range(len(points)) if number not in whole]
        bad = any(is_good(points[number], points[whole], margin) for number in lost)
        assert bad or hypervolume(points[whole]) >= hypervolume(points) - 2 * margin - 1e-12
        wrong += bad
    assert wrong <= count * alpha
    assert used < 0.8 * count * len(means) * len(PLACES)
