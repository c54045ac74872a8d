"""`search.racing` in a spec: short and long, and where it has no meaning."""

from __future__ import annotations

import pytest

from study.plan.forecast import plan_lines
from study.plan.jobs import load_data, make_plan
from study.spec.search import RacingSpec
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec

SIX = ("attacks=[badnets, blended, wanet]", "search.per=all", "defense_seeds=[0, 1]")


def test_a_number_is_its_alpha_and_nothing_is_no_race() -> None:
    assert tiny_spec(*SIX, "search.racing=0.1").search.racing == RacingSpec(alpha=0.1, margin=0.005, block=1)
    assert tiny_spec(*SIX, "search.racing={margin: 0}").search.racing == RacingSpec(alpha=0.05, margin=0.0)
    assert tiny_spec(*SIX).search.racing is None


def test_several_seeds_of_one_attack_are_cells_too() -> None:
    assert tiny_spec("defense_seeds=[0, 1]", "search.racing=0.05").search.racing is not None


@pytest.mark.parametrize(
    ("assignments", "named"),
    [
        (("search.racing=0.05", "seeds=[0]"), ("search.racing", "one cell", "defense_seeds", "per: all")),
        (("search.racing=0.05", "attacks=[badnets, blended]"), ("search.racing", "one cell")),
        ((*SIX, "search.racing=0.05", "search.budget_epochs=5"), ("search.racing", "search.budget_epochs")),
        ((*SIX, "search.racing=0.05", "search.aggregate=worst"), ("search.racing", "search.aggregate: worst")),
        ((*SIX, "search.racing=0.05", "defenses=[]"), ("search.racing", "no search")),
        ((*SIX, "search.racing=0"), ("search.racing.alpha", "0")),
        ((*SIX, "search.racing=1"), ("search.racing.alpha", "1")),
        ((*SIX, "search.racing=true"), ("search.racing", "true")),
        ((*SIX, "search.racing={margin: 1}"), ("search.racing.margin",)),
        ((*SIX, "search.racing={block: 0}"), ("search.racing.block",)),
        ((*SIX, "search.racing={first: 3}"), ("search.racing", "first")),
    ],
)
def test_a_race_without_meaning_is_one_line(assignments: tuple[str, ...], named: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        tiny_spec(*assignments)
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in named), caught.value


def test_the_plan_says_that_its_numbers_are_the_most() -> None:
    spec = tiny_spec(*SIX, "search.racing=0.05")
    lines = plan_lines(make_plan(spec), *load_data(spec))
    (line,) = [line for line in lines if line.startswith("racing:")]
    assert "alpha 0.05, margin 0.005" in line
    plain = tiny_spec(*SIX)
    assert not [line for line in plan_lines(make_plan(plain), *load_data(plain)) if line.startswith("racing")]
