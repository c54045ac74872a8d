"""Claims of training.schedules: the paper's check values, every published reading, and the shapes in between."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pytest

from trainables.defenses.super_ft import READINGS, SuperFineTuning, reading
from trainables.training.schedules import (
    CyclicSchedule,
    Phase,
    Shape,
    constant,
    cosine,
    lr_mass,
    one_cycle,
    with_equal_mass,
)

# CIFAR-10 at batch 256: 196 steps per epoch.
CIFAR10 = 50_000


def rates(schedule: CyclicSchedule) -> list[float]:
    return [schedule(step) for step in range(schedule.total_steps)]


def triangle(period: int, base: float, peak: float, steps: int) -> list[float]:
    """The reference sequence, written down by linear interpolation between the corners (an even period)."""
    half = period // 2
    up = [base + (peak - base) * i / half for i in range(half)]
    down = [peak - (peak - base) * i / half for i in range(half)]
    return [(up + down)[step % period] for step in range(steps)]


def strictly_rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


# Check values of the specification, with the digits printed there.
@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 3.0e-4),
        (1, 6.988e-4),
        (125, 0.05015),
        (250, 0.1),
        (375, 0.05015),
        (499, 6.988e-4),
        (500, 3.0e-4),
        (750, 1.0e-3),
        (999, 3.028e-4),
    ],
)
def test_papers_point_has_the_check_values(step: int, rate: float) -> None:
    assert SuperFineTuning().schedule(CIFAR10)(step) == pytest.approx(rate, rel=1e-6)


def test_papers_point_has_the_check_sums_and_masses() -> None:
    schedule = SuperFineTuning().schedule(CIFAR10)
    values = rates(schedule)
    assert schedule.phase_steps == (500, 500)
    assert sum(values[:500]) == pytest.approx(25.075, abs=1e-9)
    assert sum(values[500:]) == pytest.approx(0.325, abs=1e-9)
    momentum = constant(0.9)
    assert lr_mass(schedule, 0, 500, momentum) == pytest.approx(250.75, abs=1e-6)  # printed as 250.8
    assert lr_mass(schedule, 500, 1000, momentum) == pytest.approx(3.25, abs=1e-6)
    alternative = SuperFineTuning(lr_max2=5e-3).schedule(CIFAR10)
    assert lr_mass(alternative, 500, 1000, momentum) == pytest.approx(13.25, abs=1e-6)  # printed as 13.3


def test_mass_follows_a_moving_momentum() -> None:
    assert lr_mass(constant(0.1), 0, 2, lambda step: (0.5, 0.9)[step]) == pytest.approx(0.1 / 0.5 + 0.1 / 0.1)


def test_papers_point_is_one_triangle_per_phase() -> None:
    assert rates(SuperFineTuning().schedule(CIFAR10)) == pytest.approx(
        triangle(500, 3e-4, 0.1, 500) + triangle(500, 3e-4, 1e-3, 500), rel=1e-12
    )


@pytest.mark.parametrize(("name", "period"), [("P1", 500), ("P2", 1000), ("P3", 250)])
def test_readings_of_one_triangle_differ_in_its_length(name: str, period: int) -> None:
    assert rates(reading(name).schedule(CIFAR10)) == pytest.approx(
        triangle(period, 3e-4, 0.1, period) + triangle(period, 3e-4, 1e-3, period), rel=1e-12
    )


def test_p4_repeats_the_triangle_until_three_epochs_are_over() -> None:
    schedule = reading("P4").schedule(CIFAR10)
    assert schedule.phase_steps == (588, 588)
    assert rates(schedule) == pytest.approx(triangle(500, 3e-4, 0.1, 588) + triangle(500, 3e-4, 1e-3, 588), rel=1e-12)
    # "Phase ends mid-ramp at about 0.35 of the peak."
    assert schedule(587) == pytest.approx(0.35 * 0.1, rel=0.01)


def test_l_has_triangles_of_two_epochs_and_ends_each_phase_next_to_its_peak() -> None:
    n = 2500  # r = 5 % of CIFAR-10: 10 steps per epoch
    schedule = reading("L").schedule(n)
    assert (schedule.period, schedule.phase_steps) == (20, (30, 30))
    assert rates(schedule) == pytest.approx(triangle(20, 3e-4, 0.1, 30) + triangle(20, 3e-4, 1e-3, 30), rel=1e-12)
    assert schedule(29) > 0.89 * 0.1
    assert schedule(59) > 0.89 * 1e-3


def test_t_is_plain_sgd_over_eighty_triangles_on_one_clock() -> None:
    settings = reading("T")
    assert (settings.momentum, settings.weight_decay, settings.phase_reset) == (0.0, 0.0, False)
    schedule = settings.schedule(2000)
    assert schedule.phase_steps == (640, 960)
    assert rates(schedule) == pytest.approx(triangle(20, 0.03, 2.5, 640) + triangle(20, 0.03, 0.05, 960), rel=1e-12)
    # Its masses as the specification prints them, without momentum.
    assert lr_mass(schedule, 0, 640, constant(0.0)) == pytest.approx(809.6, abs=1e-6)
    assert lr_mass(schedule, 640, 1600, constant(0.0)) == pytest.approx(38.4, abs=1e-6)


def test_f_holds_the_rate_for_an_epoch_and_does_not_reset_its_clock() -> None:
    schedule = reading("F").schedule(CIFAR10)
    assert schedule.phase_steps == (1960, 1960)  # 10 epochs each
    per_epoch = [schedule(196 * epoch) for epoch in range(20)]
    middle = (3e-4 + 0.1) / 2
    assert per_epoch[:10] == pytest.approx([3e-4, middle, 0.1, middle] * 2 + [3e-4, middle])
    low = (3e-4 + 1e-3) / 2
    assert per_epoch[10:] == pytest.approx([1e-3, low, 3e-4, low, 1e-3, low, 3e-4, low, 1e-3, low])  # goes on
    for epoch in range(20):
        assert {schedule(196 * epoch + step) for step in range(196)} == {per_epoch[epoch]}


def test_one_cycle_reading_is_one_triangle_a_cooldown_and_inverse_momentum() -> None:
    settings = reading("one_cycle")
    schedule = settings.schedule(CIFAR10)
    assert (schedule.phase_steps, schedule.total_steps) == ((500,), 600)
    assert rates(schedule)[:500] == pytest.approx(triangle(500, 3e-4, 0.1, 500), rel=1e-12)
    cooldown = rates(schedule)[500:]
    assert cooldown == pytest.approx([3e-4 + (3e-6 - 3e-4) * i / 100 for i in range(100)], rel=1e-12)
    momentum = settings.momentum_at(schedule)
    assert momentum(0) == pytest.approx(0.95)
    assert momentum(125) == pytest.approx(0.90)
    assert momentum(250) == pytest.approx(0.85)
    assert momentum(550) == pytest.approx(0.95)


def test_every_reading_builds_and_an_unknown_one_is_refused() -> None:
    assert {reading(name) for name in READINGS} >= {SuperFineTuning()}
    with pytest.raises(ValueError, match="reading must be one of P1"):
        reading("P5")


def test_single_phases_are_zero_cycles_of_the_other() -> None:
    both = rates(SuperFineTuning(iterations=40).schedule(CIFAR10))
    assert rates(SuperFineTuning(iterations=40, cycles2=0).schedule(CIFAR10)) == both[:40]
    assert rates(SuperFineTuning(iterations=40, cycles1=0).schedule(CIFAR10)) == both[40:]
    assert rates(SuperFineTuning(iterations=40, phases=1).schedule(CIFAR10)) == both[:40]


def test_third_phase_climbs_to_its_own_peak() -> None:
    schedule = SuperFineTuning(iterations=40, phases=3, lr_max3=5e-4).schedule(CIFAR10)
    assert rates(schedule)[80:] == pytest.approx(triangle(40, 3e-4, 5e-4, 40))


@pytest.mark.parametrize("shape", ["linear", "cosine", "exp", "one_cycle"])
@pytest.mark.parametrize("up_fraction", [0.1, 0.5, 0.9])
def test_ramps_are_monotone_from_base_to_peak_and_back(shape: str, up_fraction: float) -> None:
    schedule = CyclicSchedule(1e-3, (Phase(0.5, 3),), period=100, up_fraction=up_fraction, shape=shape)  # type: ignore[arg-type]
    values = rates(schedule)
    top = round(100 * up_fraction)
    assert values[0] == pytest.approx(1e-3)
    assert values[top] == pytest.approx(0.5)
    assert strictly_rising(values[: top + 1])
    assert strictly_rising(values[top:100][::-1])
    assert values[:100] == pytest.approx(values[100:200])
    assert values[:100] == pytest.approx(values[200:])


def test_shapes_pass_through_their_own_middle() -> None:
    def middle(shape: str) -> float:
        return CyclicSchedule(0.01, (Phase(1.0, 1),), period=8, shape=shape)(2)  # type: ignore[arg-type]

    assert middle("linear") == pytest.approx((0.01 + 1.0) / 2)
    assert middle("cosine") == pytest.approx((0.01 + 1.0) / 2)
    assert middle("exp") == pytest.approx(0.1)  # the geometric mean
    quarter = CyclicSchedule(0.0, (Phase(1.0, 1),), period=8, shape="cosine")(1)
    assert quarter == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_constant_shape_stays_at_the_peak() -> None:
    assert set(rates(CyclicSchedule(1e-3, (Phase(0.2, 1),), period=10, shape="constant"))) == {0.2}


def test_peak_decays_from_cycle_to_cycle_and_starts_afresh_in_each_phase() -> None:
    for reset in (True, False):
        schedule = CyclicSchedule(0.0, (Phase(1.0, 3), Phase(0.1, 2)), period=10, peak_decay=0.5, phase_reset=reset)
        peaks = [max(rates(schedule)[10 * cycle : 10 * cycle + 10]) for cycle in range(5)]
        assert peaks == pytest.approx([1.0, 0.5, 0.25, 0.1, 0.05])


@pytest.mark.parametrize("n", [100, 5_000, CIFAR10])
def test_length_in_steps_does_not_depend_on_the_clean_set(n: int) -> None:
    assert SuperFineTuning(iterations=30).schedule(n).total_steps == 60


def test_length_in_epochs_follows_the_clean_set() -> None:
    settings = SuperFineTuning(length_unit="epoch", iterations=3, batch_size=64)
    assert settings.schedule(640).total_steps == 2 * 3 * 10
    assert settings.schedule(641).total_steps == 2 * 3 * 11
    assert settings.schedule(10).total_steps == 2 * 3 * 5  # a batch is a quarter of the set at most: two images


def test_triangles_end_where_the_rate_is_back_at_the_base() -> None:
    schedule = CyclicSchedule(0.0, (Phase(1.0, 1.5), Phase(1.0, 1)), period=10, cooldown_steps=10)
    assert [step for step in range(35) if schedule.ends_triangle(step)] == [9, 24]
    common_clock = CyclicSchedule(0.0, (Phase(1.0, 1.5), Phase(1.0, 1)), period=10, phase_reset=False)
    assert [step for step in range(25) if common_clock.ends_triangle(step)] == [9, 19]


def test_cosine_falls_from_the_rate_to_zero_over_the_actual_steps() -> None:
    schedule = cosine(0.2, 50)
    values = [schedule(step) for step in range(51)]
    assert values[0] == 0.2
    assert values[25] == pytest.approx(0.1)
    assert values[50] == pytest.approx(0.0)
    assert strictly_rising(values[::-1])


def test_cosine_with_a_fixed_period_climbs_back_as_in_backdoorbench() -> None:
    schedule = cosine(0.2, 200, t_max=100)
    assert schedule(200) == pytest.approx(0.2)


def test_one_cycle_touches_its_peak_once_and_ends_near_zero() -> None:
    schedule = one_cycle(0.5, 100, warm_fraction=0.3)
    values = [schedule(step) for step in range(100)]
    assert values[0] == pytest.approx(0.04 * 0.5)
    assert values.count(0.5) == 1
    assert values.index(0.5) == 30
    assert strictly_rising(values[:31])
    assert strictly_rising(values[30:][::-1])
    assert values[-1] < 0.001


@pytest.mark.parametrize("shape", ["linear", "cosine", "exp", "constant", "one_cycle"])
def test_shapes_at_equal_mass_take_the_same_steps_and_sum_to_the_same_rate(shape: Shape) -> None:
    published = SuperFineTuning().schedule(CIFAR10)
    schedule = SuperFineTuning(shape=shape, equal_mass=True).schedule(CIFAR10)
    assert schedule.phase_steps == published.phase_steps
    for first, last in ((0, 500), (500, 1000)):
        assert math.fsum(rates(schedule)[first:last]) == pytest.approx(math.fsum(rates(published)[first:last]))
    if shape != "linear":
        assert rates(schedule) != pytest.approx(rates(published), rel=1e-2), "it is another shape"


def test_equal_mass_moves_the_peaks_where_they_must_go() -> None:
    assert SuperFineTuning(equal_mass=True).schedule(CIFAR10)(250) == pytest.approx(0.1)
    # Constant: the mean of the triangle. Exponential: flatter at its foot, so it must climb higher.
    assert SuperFineTuning(shape="constant", equal_mass=True).schedule(CIFAR10)(0) == pytest.approx(0.05015)
    assert SuperFineTuning(shape="exp", equal_mass=True).schedule(CIFAR10)(250) > 0.2


def test_equal_mass_leaves_alone_what_no_peak_can_move() -> None:
    """A phase of one step stands at the foot of its triangle, whatever its peak."""
    single = CyclicSchedule(0.01, (Phase(1.0, 0.1), Phase(1.0, 0)), period=10, shape="exp")
    assert with_equal_mass(single) == dataclasses.replace(single, shape="exp")


@pytest.mark.parametrize("length", [0, 50, 250, 500, 2000])
def test_phase_1_has_a_length_of_its_own_and_whole_triangles(length: int) -> None:
    schedule = SuperFineTuning(iterations1=length).schedule(CIFAR10)
    published = SuperFineTuning().schedule(CIFAR10)
    assert schedule.phase_steps == (length, 500)
    assert rates(schedule)[length:] == pytest.approx(rates(published)[500:])
    if length:
        assert rates(schedule)[:length] == pytest.approx(triangle(length, 3e-4, 0.1, length))
        assert [step for step in range(length + 500) if schedule.ends_triangle(step)] == [length - 1, length + 499]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations1 gives phase 1 a clock of its own; it needs phase_reset true"):
        SuperFineTuning(iterations1=10, phase_reset=False)
    with pytest.raises(ValueError, match="equal_mass compares shapes at one momentum"):
        SuperFineTuning(equal_mass=True, momentum_mode="inverse")


def test_a_triangle_without_a_rising_part_begins_at_its_peak() -> None:
    schedule = CyclicSchedule(0.0, (Phase(0.2, 2),), period=50, up_fraction=0.0, shape="cosine")
    fall = cosine(0.2, 50)
    assert rates(schedule) == pytest.approx([fall(step % 50) for step in range(100)])


def test_the_shape_of_one_cycle_rises_in_a_straight_line_and_falls_along_a_cosine() -> None:
    def of(shape: Shape) -> list[float]:
        return rates(CyclicSchedule(0.01, (Phase(1.0, 2),), period=100, up_fraction=0.3, shape=shape))

    values = of("one_cycle")
    for cycle in (0, 100):
        assert values[cycle : cycle + 30] == of("linear")[:30]
        assert values[cycle + 30 : cycle + 100] == of("cosine")[30:100]
