"""Claims of trainables.registry: names, settings and one clear line for what is neither."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, SettingError, closest, nearest


@dataclass(frozen=True)
class Method:
    rate: float = 0.5
    steps: int | None = None
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    label: str = "x"

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError(f"rate must be <= 1, got {self.rate}")


@pytest.fixture
def registry() -> Registry[Method]:
    registry = Registry[Method]("method", "trainables.attacks")
    registry.register("probe")(Method)
    return registry


def test_settings_go_over_the_defaults(registry: Registry[Method]) -> None:
    assert registry.create("probe", {"rate": 0.25, "steps": 3}) == Method(rate=0.25, steps=3)
    assert registry.create("probe") == Method()


def test_a_whole_number_is_a_rate_too_and_has_the_same_identity(registry: Registry[Method]) -> None:
    made = registry.create("probe", {"rate": 1})
    assert made.rate == 1.0
    assert isinstance(made.rate, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": "high"}, "method.probe.rate must be a number, got 'high'"),
        ({"rate": float("nan")}, "method.probe.rate must be a number, got nan"),
        ({"rate": float("inf")}, "method.probe.rate must be a number, got inf"),
        ({"rate": True}, "method.probe.rate must be a number, got True"),
        ({"rate": None}, "method.probe.rate must be a number, got None"),
        ({"steps": 2.5}, "method.probe.steps must be a whole number, got 2.5"),
        ({"steps": True}, "method.probe.steps must be a whole number, got True"),
        ({"flag": 1}, "method.probe.flag must be true or false, got 1"),
        ({"kind": "c"}, "method.probe.kind must be one of a, b, got 'c'"),
        ({"label": 3}, "method.probe.label must be text, got 3"),
        ({"rate": 2.0}, "method.probe: rate must be <= 1, got 2.0"),
        ({"rte": 0.1}, "unknown setting method.probe.rte: did you mean 'rate'?"),
    ],
)
def test_bad_settings_get_one_line(registry: Registry[Method], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        registry.create("probe", settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(SettingError, match="unknown attack 'badnet': did you mean 'badnets'"):
        ATTACKS.get("badnet")
    with pytest.raises(SettingError, match="unknown defense 'superft': did you mean 'super_ft'"):
        DEFENSES.get("superft")


def test_a_name_is_given_once(registry: Registry[Method]) -> None:
    with pytest.raises(SettingError, match="method 'probe' is registered twice"):
        registry.register("probe")(Method)


@pytest.mark.parametrize("registered", [ATTACKS, DEFENSES], ids=["attacks", "defenses"])
def test_methods_are_frozen_documented_and_lower_case(registered: Registry[Any]) -> None:
    for name in registered.names():
        cls = registered.get(name)
        assert name == name.lower() == cls.name
        assert cls.__dataclass_params__.frozen
        documented = " ".join(str(base.__doc__) for base in cls.__mro__)
        for field in (item.name for item in dataclasses.fields(cls)):
            assert field in documented, f"{name}.{field} is not described"


def test_names_that_are_equally_near_are_all_suggested() -> None:
    known = ["lr_base", "lr_max1", "lr_max2", "steps"]
    assert closest("lr_maxx", known) == ["lr_max1", "lr_max2"]
    assert closest("steps", known) == ["steps"]
    assert closest("zzz", known) == []
    assert nearest("lr_maxx", known).startswith("did you mean 'lr_max1' or 'lr_max2'?")
    assert nearest("zzz", known) == "known: lr_base, lr_max1, lr_max2, steps"
