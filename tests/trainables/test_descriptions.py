"""Claims of trainables.descriptions: classes tell their settings, without a second list that could differ."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.descriptions import Setting, args_section, describe_settings
from trainables.settings import Above, Count, Positive, Within
from trainables.training.loop import Augmentation, Optimizer
from trainables.training.recipes import TrainingRecipe


@dataclass(frozen=True)
class Base:
    """A base.

    Args:
        lr: learning rate,
            in units of its own.
        momentum, decay: of SGD.
        steps: base's words.
    """

    lr: Positive = 0.1
    momentum: Annotated[float, Within("[0, 1)")] = 0.9
    decay: float = 0.0
    steps: Count | None = None


@dataclass(frozen=True)
class Derived(Base):
    """A subclass.

    Args:
        kind: see: a colon is no new entry.
        steps: its own words.

    Raises:
        ValueError: no setting.
    """

    steps: Count | None = 5
    kind: Literal["a", "b"] = "a"
    sure: bool = True
    text: str = "x"
    bound: Annotated[float, Above(0, "or none")] | None = None
    parts: tuple[int, ...] = field(default_factory=tuple)
    made: int = field(default=0, init=False)


def test_settings_are_told_from_fields_and_docstrings() -> None:
    assert describe_settings(Derived) == [
        Setting("lr", "number", 0.1, "> 0", "learning rate, in units of its own.", True),
        Setting("momentum", "number", 0.9, "in [0, 1)", "of SGD.", True),
        Setting("decay", "number", 0.0, "", "of SGD.", True),
        Setting("steps", "whole number or null", 5, ">= 1", "its own words.", False),
        Setting("kind", "choice", "a", "a, b", "see: a colon is no new entry.", False),
        Setting("sure", "true or false", True, "", "", False),
        Setting("text", "text", "x", "", "", False),
        Setting("bound", "number or null", None, "> 0", "", False),
        Setting("parts", "value", (), "", "", False),
    ]


def test_a_docstring_without_arguments_tells_nothing() -> None:
    assert args_section("One line.") == {}
    assert args_section("One line.\n\n    Args:\n        x: y\n\n    Raises:\n        z: no argument.\n") == {"x": "y"}


def test_a_setting_that_must_be_given_has_no_default() -> None:
    told = {item.name: item for item in describe_settings(TrainingRecipe)}
    assert told["epochs"].default is dataclasses.MISSING
    assert told["momentum"].default == 0.9


METHODS = [registry.get(name) for registry in (ATTACKS, DEFENSES) for name in registry.names()]


@pytest.mark.parametrize("cls", [*METHODS, TrainingRecipe, Optimizer, Augmentation], ids=lambda cls: cls.__name__)
def test_every_setting_says_what_it_means(cls: type[Any]) -> None:
    """In words, not by its range alone, and not by a hint at another place."""
    told = describe_settings(cls)
    assert [item.name for item in told] == [item.name for item in dataclasses.fields(cls)]
    for item in told:
        where = f"{cls.__name__}.{item.name}: {item.meaning!r}"
        assert len(item.meaning) > 5, where
        assert not item.meaning.startswith((">", "in [", "in (", "see ")), where
        assert item.type != "value", f"{where} is of a type that nothing checks"


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_setting_of_a_method_has_a_default_that_it_allows(cls: type[Any]) -> None:
    told = describe_settings(cls)
    assert all(item.default is not dataclasses.MISSING for item in told)
    cls(**{item.name: item.default for item in told})
