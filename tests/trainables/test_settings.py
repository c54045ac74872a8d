"""Claims of trainables.settings: what an annotation allows is allowed, everything else is refused in one line."""

import math
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Annotated, Any, Literal, Optional

import pytest

from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.settings import (
    Above,
    AtLeast,
    Bound,
    Count,
    InnerShare,
    NonNegative,
    NormalisedBatch,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    Within,
    Written,
    check_settings,
    rules_of,
)


@dataclass(frozen=True)
class Probe:
    lr: Positive = 0.1
    weight: NonNegative | None = None
    steps: Count | None = 3
    other: Optional[Annotated[float, Above(1)]] = None  # noqa: UP045 - the older way to write it means the same
    whole: Annotated[float | None, Within("(0, 0.5]", "of it")] = None
    batch: NormalisedBatch = 2
    sure: bool = False
    kind: Literal["a", "b"] = "a"
    grade: Literal[1, 2, 3, 4] = 1
    place: Annotated[str, Written("here or there", "here|there")] = "here"
    free: Any = None
    plain: float = 0.0
    made: float = field(default=-1.0, init=False)

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 1},
        {"lr": 1e12, "weight": 0, "steps": 1, "other": 1.5, "whole": 0.5},
        {"weight": None, "steps": None, "other": None, "whole": None},
        {"kind": "b", "grade": 4, "place": "there", "free": object(), "sure": True},
    ],
)
def test_what_the_annotations_allow_is_taken_as_it_is(settings: dict[str, Any]) -> None:
    made = Probe(**settings)
    for key, value in settings.items():
        assert getattr(made, key) is value, "nothing is converted: identities and keys stay"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr must be > 0, got 0"),
        ({"lr": -1.5}, "lr must be > 0, got -1.5"),
        ({"lr": math.nan}, "lr must be > 0, got nan"),
        ({"lr": math.inf}, "lr must be > 0, got inf"),
        ({"lr": None}, "lr must be a number, got None"),
        ({"lr": "big"}, "lr must be a number, got 'big'"),
        ({"lr": True}, "lr must be a number, got True"),
        ({"weight": -1}, "weight must be >= 0, got -1"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps": 2.0}, "steps must be a whole number, got 2.0"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"other": 1}, "other must be > 1, got 1"),
        ({"whole": 0.6}, "whole must be in (0, 0.5] of it, got 0.6"),
        ({"batch": 1}, "batch must be >= 2 (batch normalisation), got 1"),
        ({"sure": 1}, "sure must be true or false, got 1"),
        ({"kind": "c"}, "kind must be a or b, got 'c'"),
        ({"grade": 5}, "grade must be one of 1, 2, 3, 4, got 5"),
        ({"grade": True}, "grade must be one of 1, 2, 3, 4, got True"),
        ({"place": "nowhere"}, "place must be here or there, got 'nowhere'"),
        ({"place": 3}, "place must be text, got 3"),
        ({"plain": math.nan}, "plain must be a number, got nan"),
    ],
)
def test_everything_else_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared below
        Probe(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        (Within("(0, 1]"), (0.1, 1.0), (0.0, 1.1, math.nan)),
        (Within("[0, 1)"), (0.0, 0.9), (-0.1, 1.0, math.nan)),
        (Within("(0, 1)"), (0.5,), (0.0, 1.0)),
        (Within("[-1, 1]"), (-1.0, 1.0), (-1.1, 1.1, math.inf)),
        (Within("[1/255, 1]"), (1 / 255, 1.0), (0.9 / 255,)),
        (Above(0), (1e-300,), (0.0, math.inf, math.nan)),
        (AtLeast(0), (0.0, 5), (-1e-9, math.inf, math.nan)),
        (AtLeast(0, infinite=True), (0.0, math.inf), (-1.0, math.nan)),
    ],
)
def test_ends_of_ranges(bound: Bound, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(bound.holds(value) for value in inside)
    assert not any(bound.holds(value) for value in outside)


def test_shares_are_named_by_what_they_leave_out() -> None:
    @dataclass
    class Shares:
        all: Share
        positive: PositiveShare
        below_one: ShareBelowOne
        inner: InnerShare

    allowed = {name: [value for value in (0.0, 0.5, 1.0) if rule.bounds[0].holds(value)]
               for name, rule in rules_of(Shares).items()}  # fmt: skip
    assert allowed == {"all": [0.0, 0.5, 1.0], "positive": [0.5, 1.0], "below_one": [0.0, 0.5], "inner": [0.5]}


def test_a_message_may_call_a_field_by_another_name() -> None:
    @dataclass
    class Named:
        name: Literal["sgd", "adam"]

    with pytest.raises(ValueError, match=r"^optimizer must be sgd or adam, got 'sgdd'$"):
        check_settings(Named("sgdd"), called={"name": "optimizer"})  # type: ignore[arg-type]


def test_a_subclass_adds_rules_across_fields_and_changes_a_field() -> None:
    @dataclass(frozen=True)
    class Narrow(Probe):
        lr: Annotated[float, Within("(0, 0.5]")] = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sure and self.kind == "b":
                raise ValueError("sure has no meaning with kind b")

    with pytest.raises(ValueError, match=r"lr must be in \(0, 0\.5\], got 0\.6"):
        Narrow(lr=0.6)
    with pytest.raises(ValueError, match="sure has no meaning with kind b"):
        Narrow(sure=True, kind="b")
    with pytest.raises(ValueError, match="kind must be a or b, got 'c'"):
        Narrow(sure=True, kind="c")  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        Narrow().lr = 0.2  # type: ignore[misc]


METHODS = [(registry, name) for registry in (ATTACKS, DEFENSES) for name in registry.names()]


@pytest.mark.parametrize(("registry", "name"), METHODS, ids=[f"{item[0].kind} {item[1]}" for item in METHODS])
def test_every_method_checks_every_field_also_without_the_registry(registry: Any, name: str) -> None:
    cls = registry.get(name)
    rules = rules_of(cls)
    assert list(rules) == [item.name for item in fields(cls)]
    for key in rules:
        with pytest.raises(ValueError, match=f"^{key} must be .*got <object"):
            cls(**{key: object()})
