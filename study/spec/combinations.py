"""What ``sweep`` of a spec means: the cross product of its keys, and which keys it may have.

Works on plain mappings, before and after a spec is checked.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from study.spec.yaml_io import SpecError, with_value

# A study has one of these for all of its combinations. Lists first: more of them stand in the list itself.
LISTED = ("attacks", "defenses", "baselines", "seeds", "defense_seeds", "tracking", "plugins")
OF_THE_STUDY = (
    *("name", "set_apart", "sweep", "search", "resources", "store", "download", "data_root", "keep"),
    *("curve", "aftermath", "scenario.type", "scenario.upstream", "scenario.controls"),
    *("scenario.clean_control", "victim.require_implanted"),
)
MAY_DIFFER = ("search.space", "search.ranges")  # each combination has searches of its own

Values = dict[str, Any]


def combinations_of(sweep: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Every combination of a sweep, as values by key; the last key changes fastest. One, empty, without a sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def names_of(sweep: Mapping[str, Sequence[Any]]) -> list[str]:
    """Name of each combination, fit for ids, files and trackers: ``clean_fraction-0.1--lr_max1-0.3``."""
    short = {key: key.rpartition(".")[2] for key in sweep}
    if len(set(short.values())) < len(short):
        short = {key: key for key in sweep}
    names: list[str] = []
    for values in combinations_of(sweep):
        name = "--".join(f"{short[key]}-{_word(value)}" for key, value in values.items())
        # Two folders of one name, or texts that differ in signs alone.
        names.append(f"{name}--{len(names)}" if name in names else name)
    return names


def as_json(values: Values) -> str:
    """The keys and values of a combination as they stand in a row; empty where there are none."""
    return json.dumps(values) if values else ""


def in_words(swept: Any) -> str:
    """A row's column ``swept`` for people: ``clean_fraction 0.1, victim.lr 0.01``; empty where nothing is swept."""
    values = json.loads(swept) if isinstance(swept, str) and swept else {}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def with_values(settings: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """``settings`` of a whole study as those of one combination of its sweep."""
    own = {key: value for key, value in settings.items() if key != "sweep"}
    for key, value in values.items():
        own = with_value(own, key, value, f"sweep.{key}")
    return own


def check_sweep(sweep: Any) -> dict[str, list[Any]]:
    """The sweep of a spec as it was given, flat, its keys with dots (SpecError: it cannot be one)."""
    if not isinstance(sweep, Mapping):
        raise SpecError(f"sweep: must be a mapping of keys to lists of values, got {sweep!r}")
    flat = _flat(sweep)
    for key, values in flat.items():
        if not isinstance(values, list):
            raise SpecError(f"sweep.{key}: must be a list of values such as [a, b], got {values!r}")
        _check_key(key, values)
        for value in values:
            if not isinstance(value, str | int | float):
                raise SpecError(f"sweep.{key}: a value is a number, a text, true or false, got {value!r}")
        if len(values) == 1:
            raise SpecError(f"sweep.{key}: a sweep needs two values or more, got {values!r}; set {key} itself instead")
        if not values:
            raise SpecError(f"sweep.{key}: a sweep needs two values or more, got none; leave the key out")
        repeated = [value for place, value in enumerate(values) if value in values[:place]]
        if repeated:
            raise SpecError(f"sweep.{key}: names {repeated[0]!r} more than once")
    return flat


def swept_keys(settings: Mapping[str, Any]) -> list[str]:
    """Keys that a spec as it was given sweeps, with dots; none where what it has there is no sweep."""
    sweep = settings.get("sweep")
    return list(_flat(sweep)) if isinstance(sweep, Mapping) else []


def _check_key(key: str, values: Sequence[Any]) -> None:
    """Refuse what all combinations of a study share."""
    root = key.partition(".")[0]
    if root in LISTED:
        raise SpecError(f"sweep.{key}: a study has many {root} without a sweep; list all of them under {root}")
    if any(_within(key, whole) for whole in OF_THE_STUDY) and not any(_within(key, one) for one in MAY_DIFFER):
        wanted = ", ".join(map(str, values))
        raise SpecError(
            f"sweep.{key}: all combinations of a study share one {key}; make {len(values)} studies instead, one for "
            f"each of {wanted}"
        )


def _within(key: str, whole: str) -> bool:
    return key == whole or key.startswith(f"{whole}.")


def _flat(sweep: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys may be nested or written with dots; both come out with dots."""
    flat: dict[str, Any] = {}
    for key, value in sweep.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _word(value: Any) -> str:
    """A value as a part of a name: of a path, its end."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]", "-", text.rstrip("/").rpartition("/")[2].replace("+", "") or "-")
