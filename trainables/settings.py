"""Settings as typed, bounded fields of dataclasses, such as ``lr: Annotated[float, Above(0)]``, checked in one place.

The annotation says everything: the type, the choices (``Literal``), whether None is allowed (``| None``) and the range.
`check_settings` refuses an instance that breaks it; `descriptions.describe_settings` tells it to people.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints


class Bound(Protocol):
    """What a value must keep to besides its type."""

    def holds(self, value: Any) -> bool:
        """Whether ``value``, of the field's type and not None, is allowed."""

    @property
    def words(self) -> str:
        """The rule as it stands behind "must be" in a message: ``> 0``, ``in (0, 1]``."""


@dataclass(frozen=True)
class Above:
    """Finite numbers greater than ``low``. All these bounds take a ``note`` that follows the range in messages."""

    low: float
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` is greater."""
        return self.low < value < math.inf

    @property
    def words(self) -> str:
        """The bound as people write it."""
        return f"> {self.low:g} {self.note}".strip()


@dataclass(frozen=True)
class AtLeast:
    """Numbers from ``low`` on; infinity only where ``infinite`` says so."""

    low: float
    note: str = ""
    infinite: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is as great or greater."""
        return self.low <= value and (self.infinite or value < math.inf)

    @property
    def words(self) -> str:
        """The bound as people write it."""
        return f">= {self.low:g} {self.note}".strip()


@dataclass(frozen=True)
class Within:
    """Numbers of an interval as mathematics writes it: ``(0, 1]`` leaves out 0 and holds 1. Ends may be fractions."""

    interval: str
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        low, high = (float(Fraction(end.strip())) for end in self.interval[1:-1].split(","))
        from_low = low <= value if self.interval[0] == "[" else low < value
        return from_low and (value <= high if self.interval[-1] == "]" else value < high)

    @property
    def words(self) -> str:
        """The interval as people write it."""
        return f"in {self.interval} {self.note}".strip()


@dataclass(frozen=True)
class Written:
    """Texts of a form: the whole text matches ``pattern``, which ``form`` tells in words."""

    form: str
    pattern: str

    def holds(self, value: str) -> bool:
        """Whether ``value`` is written so."""
        return re.fullmatch(self.pattern, value) is not None

    @property
    def words(self) -> str:
        """The form in words."""
        return self.form


Positive = Annotated[float, Above(0)]
NonNegative = Annotated[float, AtLeast(0)]
# Shares, named by what they leave out of [0, 1].
Share = Annotated[float, Within("[0, 1]")]
PositiveShare = Annotated[float, Within("(0, 1]")]
ShareBelowOne = Annotated[float, Within("[0, 1)")]
InnerShare = Annotated[float, Within("(0, 1)")]
Count = Annotated[int, AtLeast(1)]
CountOrZero = Annotated[int, AtLeast(0)]
# Images per step of a training whose batch normalisation takes its statistics from the batch.
NormalisedBatch = Annotated[int, AtLeast(2, "(batch normalisation)")]

_TYPE_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class FieldRule:
    """What an annotation says of a field.

    Args:
        kind: float, int, bool, str, or None where the annotation is of another kind and nothing is checked.
        choices: the allowed values, of a ``Literal``; empty otherwise.
        optional: whether None is allowed.
        bounds: what the value must keep to besides.
    """

    kind: type | None = None
    choices: tuple[Any, ...] = ()
    optional: bool = False
    bounds: tuple[Bound, ...] = ()

    def fault(self, value: Any, *, finite: bool = True) -> str:
        """What ``value`` must be and is not, as far as type and choices go; empty if it is all right.

        Args:
            finite: whether a float must be a finite number.
        """
        if value is None and self.optional:
            return ""
        if self.choices:
            allowed = any(value == choice and type(value) is type(choice) for choice in self.choices)
            return "" if allowed else f"one of {', '.join(map(str, self.choices))}"
        if self.kind is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return "" if number and (not finite or math.isfinite(value)) else _TYPE_WORDS[float]
        if self.kind is None or (isinstance(value, self.kind) and not (self.kind is int and isinstance(value, bool))):
            return ""
        return _TYPE_WORDS[self.kind]

    def typed(self, value: Any, what: str) -> Any:
        """``value`` as the field wants it: a whole number becomes a float where the field is one.

        Args:
            what: the setting's full name, for the message.

        Raises:
            ValueError: it is of another type, not a finite number, or not among the choices.
        """
        if fault := self.fault(value):
            raise ValueError(f"{what} must be {fault}, got {value!r}")
        return float(value) if self.kind is float and value is not None else value


def rule_of(hint: Any) -> FieldRule:
    """The rule of one annotation, read with its extras: a plain type, ``Literal``, ``Annotated``, or one with None."""
    if get_origin(hint) is Annotated:
        rule = rule_of(get_args(hint)[0])
        bounds = tuple(extra for extra in get_args(hint)[1:] if hasattr(extra, "holds"))
        return dataclasses.replace(rule, bounds=(*rule.bounds, *bounds))
    if get_origin(hint) in (Union, UnionType):
        given = [option for option in get_args(hint) if option is not type(None)]
        rule = rule_of(given[0]) if len(given) == 1 else FieldRule()
        return dataclasses.replace(rule, optional=rule.optional or len(given) < len(get_args(hint)))
    if get_origin(hint) is Literal:
        return FieldRule(choices=get_args(hint))
    return FieldRule(hint if hint in _TYPE_WORDS else None)


def rules_of(cls: type[Any]) -> Mapping[str, FieldRule]:
    """Rules of the fields that the constructor of a dataclass takes, inherited ones too, in their order."""
    return _rules_of(cls)  # type: ignore[arg-type]  # mypy doubts that classes are hashable


@functools.cache
def _rules_of(cls: type[Any]) -> Mapping[str, FieldRule]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: rule_of(hints[field.name]) for field in dataclasses.fields(cls) if field.init}


def check_settings(instance: Any, called: Mapping[str, str] | None = None) -> None:
    """Refuse a dataclass instance that breaks the annotations of its fields; for ``__post_init__``.

    Args:
        called: what messages call a field, where that is not its own name.

    Raises:
        ValueError: one line, such as ``alpha must be >= 0, got -1``.
    """
    for name, rule in rules_of(type(instance)).items():
        value = getattr(instance, name)
        # The range of a number says more than that it should be finite.
        fault = rule.fault(value, finite=not rule.bounds)
        if rule.choices and fault:
            fault = choices_in_words(rule.choices)
        if not fault and value is not None:
            fault = next((bound.words for bound in rule.bounds if not bound.holds(value)), "")
        if fault:
            raise ValueError(f"{(called or {}).get(name, name)} must be {fault}, got {value!r}")


def choices_in_words(choices: tuple[Any, ...]) -> str:
    """``cosine or constant``, ``cosine, constant or swing``, and from four on ``one of a, b, c, d``."""
    texts = [str(choice) for choice in choices]
    if len(texts) > 3:
        return f"one of {', '.join(texts)}"
    return any_of(texts)


def any_of(texts: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``: one text or more, as English lists them."""
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
