"""Settings to begin with, from the fronts of other studies (``search.warm_start``)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from search_spaces.space import fingerprint, holds, within
from study.plan.jobs import Plan, Search
from study.record.folder import LEDGER_FILE
from study.record.ledger import Ledger
from study.record.remote_folder import open_folder
from study.results.fronts import fronts
from study.results.in_words import settings_of
from study.spec.yaml_io import SpecError
from trainables.storage.remote import Place

log = logging.getLogger("superft.search")

# A bound that was computed, as that of a ratio, is met to so many parts.
ROUNDING = 1e-9


@dataclass(frozen=True)
class WarmPoint:
    """One setting to begin with.

    Args:
        params: searched parameters, all of them and within their ranges.
        origin: the study it comes from, as the spec names it.
    """

    params: Mapping[str, Any]
    origin: str


def warm_points(plan: Plan) -> dict[str, list[WarmPoint]]:
    """What each search of a plan begins with beside the published point, by its label; empty where nothing is given.

    No more than ``search.startup_trials``, whose place they take.

    Raises:
        SpecError: a study has no front of that defense, or none of its settings fits into the search space.
    """
    spec = plan.spec.search
    if not spec.warm_start:
        return {}
    others = {str(place): front_of_study(place) for place in spec.warm_start}
    return {search.label: points_for(search, others, spec.startup_trials) for search in plan.searches}


def front_of_study(place: Place) -> pd.DataFrame:
    """All fronts of a study, as in its ``front.csv`` (SpecError where there is no ledger)."""
    with open_folder(place) as folder:
        folder.fetch(rows_only=True)
        if not (folder.path / LEDGER_FILE).is_file():
            raise SpecError(f"search.warm_start: {place} is no study folder: it has no {LEDGER_FILE}")
        ledger = Ledger.read(folder.path / LEDGER_FILE)
        return fronts(ledger.to_frame()) if len(ledger) else pd.DataFrame(columns=["defense"])


def points_for(search: Search, others: Mapping[str, pd.DataFrame], most: int) -> list[WarmPoint]:
    """At most ``most`` settings from the fronts of others, as many from each and spread over it; see `warm_points`.

    Args:
        others: by the name of their study; rows as of `fronts.fronts`.
    """
    found: list[WarmPoint] = []
    share = max(1, most // max(1, len(others)))
    for origin, front in others.items():
        rows = front[front["defense"] == search.defense]
        if rows.empty:
            has = ", ".join(sorted(set(front["defense"]))) or "nothing"
            raise SpecError(f"search.warm_start: {origin} has no front of {search.defense}; it has one of {has}")
        fitting, misfits = list[Mapping[str, Any]](), list[str]()
        for _, row in rows.iterrows():
            params, why = _mapped(search, settings_of(row))
            if why:
                misfits.append(why)
            else:
                fitting.append(params)
        if not fitting:
            raise SpecError(
                f"search.warm_start: none of the {len(rows)} settings on the front of {origin} fits into the search "
                f"space of {search.defense}: {misfits[0]}"
            )
        if misfits:
            log.warning(
                "search.warm_start: %d of %d settings on the front of %s are left out: %s",
                *(len(misfits), len(rows), origin, misfits[0]),
            )
        places = np.unique(np.linspace(0, len(fitting) - 1, min(share, len(fitting))).round().astype(int))
        found += [WarmPoint(fitting[place], origin) for place in places]
    different = {fingerprint(point.params): point for point in reversed(found)}
    return list(reversed(different.values()))[:most]


def _mapped(search: Search, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Searched parameters of another study's settings, or why there are none."""
    space = search.space
    # A table shows no None: where that is a choice, a setting that is not there has it.
    left_out = {name: None for name, item in space.distributions.items() if None in getattr(item, "choices", ())}
    try:
        given = space.to_params({**left_out, **settings})
    except KeyError as error:
        return {}, f"it has no {error.args[0]}"
    params = {}
    for name in space.names_of(given):
        item = space.distributions[name]
        if name not in given:
            return {}, f"it has no {name}"
        params[name] = _fit(given[name], item)
        if not _is_inside(item, params[name]):
            return {}, f"{name} = {given[name]!r} lies outside {_in_words(item)}"
    if space.conditions:  # whose parameters say more than a setting each, and not everything
        again = space.to_settings(params)
        for name in again:
            if name in settings and not _same(again[name], settings[name]):
                return {}, f"no point has {name} = {settings[name]!r} beside its other settings"
    return params, ""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=ROUNDING)
    return bool(one == other)


def _fit(value: Any, item: BaseDistribution) -> Any:
    if isinstance(item, IntDistribution) and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(item, FloatDistribution) and isinstance(value, int | float):
        nearest = within(float(value), item)
        return nearest if abs(nearest - value) <= ROUNDING * abs(value) else value
    return value


def _is_inside(item: BaseDistribution, value: Any) -> bool:
    try:
        return holds(item, value)
    except (TypeError, ValueError):  # a text where a number is searched
        return False


def _in_words(item: BaseDistribution) -> str:
    choices: Sequence[Any] = getattr(item, "choices", ())
    return f"{list(choices)}" if choices else f"[{item.low:g}, {item.high:g}]"  # type: ignore[attr-defined]
