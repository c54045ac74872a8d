"""Which searches still lack settings, as far as the ledger and the spec can tell."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import space as search_spaces
from study.results.settings import ALL_ATTACKS, GROUP, cell_names, charged_epochs, is_shared
from trainables.registry import SettingError

LARGEST_SPACE = 10_000  # points up to which a space is counted; a larger one is not used up


def unfinished_searches(
    frame: pd.DataFrame, search: Mapping[str, Any], ended: Container[str] = ()
) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Searches that lack settings: GROUP key -> (settings with a row, settings asked for).

    A search has ended when it has ``search.trials`` settings, when it has spent its ``search.budget_epochs``, or when
    it has tried every setting of a space that holds fewer.

    Args:
        frame: ledger rows.
        search: the part ``search`` of the spec, as written; what is missing there ends no search.
        ended: searches (``ATTACK/LABEL``) that are known to have ended, see `record.ended`.
    """
    asked = search.get("trials")
    rows = frame[frame["role"].fillna("search") == "search"]
    if not isinstance(asked, int) or not len(rows):
        return {}
    cell = cell_names(rows)
    if is_shared(frame):
        rows = rows.assign(attack=ALL_ATTACKS)
    rows = rows.assign(cell=cell, cost=charged_epochs(rows).fillna(0.0))
    budget = search.get("budget_epochs")
    found = {}
    for keys, group in rows.groupby(list(GROUP), dropna=False):
        if f"{keys[-2]}/{keys[-1]}" in ended:
            continue
        done = int(group["trial"].nunique())
        cells = group["cell"].nunique()
        spent = isinstance(budget, int | float) and group["cost"].sum() >= budget * cells * (1 - 1e-9)
        dataset = str(group["dataset"].iloc[0]) if "dataset" in group else None
        size = space_size(str(group["defense"].iloc[0]), search, dataset, str(keys[-1]))
        if done < asked and not spent and done < size:
            found[tuple(keys)] = (done, asked)
    return found


def not_begun(frame: pd.DataFrame, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(attack, defense) of the searches that the spec asks for and of which the ledger has no row yet."""
    attacks, defenses = spec.get("attacks"), spec.get("defenses")
    if not isinstance(attacks, list) or not isinstance(defenses, list):
        return []
    rows = frame[frame["role"].fillna("search") == "search"]
    begun = set(zip(rows["attack"].astype(str), rows["defense_label"].astype(str), strict=True))
    return [(str(a), str(d)) for a in attacks for d in defenses if (str(a), str(d)) not in begun]


def space_size(defense: str, search: Mapping[str, Any], dataset: str | None = None, label: str | None = None) -> float:
    """Different settings that the search space of a defense holds; infinite if it is large, continuous or unknown.

    Args:
        defense: registered name.
        search: the part ``search`` of the spec, as written.
        dataset: of the study, whose published point must lie in the space.
        label: of the defense in the study; default its registered name.
    """
    label = label or defense
    try:
        space = search_spaces.get_space(defense, _part(search, "space").get(label, "default"), dataset)
        ranges = _part(_part(search, "ranges"), label)
        space = space.with_ranges(ranges, f"search.ranges.{label}", published=search.get("published") is not False)
    except SettingError:
        return math.inf
    choices = {name: _points(item) for name, item in space.distributions.items()}
    size = math.prod(map(len, choices.values()))
    if not 0 < size <= LARGEST_SPACE:
        return math.inf
    different = set()
    for number in range(size):
        params = {}
        for name, points in choices.items():
            number, index = divmod(number, len(points))
            params[name] = points[index]
        settings = space.to_settings(params)
        plain = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in settings.items()}
        different.add(json.dumps(plain, sort_keys=True, default=str))
    return len(different)


def _points(item: BaseDistribution) -> list[Any]:
    """All values of a distribution; none of a continuous one, or of one that is large by itself."""
    if isinstance(item, CategoricalDistribution):
        return list(item.choices)
    if isinstance(item, IntDistribution) and item.high - item.low < LARGEST_SPACE:
        return list(range(item.low, item.high + 1, item.step))
    if isinstance(item, FloatDistribution) and (item.low == item.high or item.step):
        steps = 0 if item.low == item.high else round((item.high - item.low) / (item.step or 1.0))
        return [item.low + i * (item.step or 0.0) for i in range(steps + 1)] if steps < LARGEST_SPACE else []
    return []


def _part(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}
