"""What the settings on a front have in common that as many others, picked at random, would not have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from search_spaces.space import Space
from study.record.columns import PARAM
from study.results.searched_params import searched_params, varies

# A front is said to have something in common where of twenty random picks of as many settings less than one would, in
# any of the parameters that are looked at (Bonferroni).
CHANCE = 0.05
FEWEST = 3  # settings on a front below which nothing can be told


@dataclass(frozen=True)
class Alike:
    """One parameter whose values on the front are alike.

    Args:
        name: of the parameter.
        words: the values there and among all settings.
        chance: probability that as many settings, picked at random among all, are as alike.
    """

    name: str
    words: str
    chance: float


def alike(searched: pd.DataFrame, trials: list[str], space: Space | None = None) -> list[Alike]:
    """The parameters in which the settings called ``trials`` are alike, the least likely by chance first.

    Args:
        searched: all finished settings of one search, rows of `settings.candidates`.
        trials: those on its front.
        space: see `searched_params`.
    """
    params, has = searched_params(searched, space)
    member = searched["trial"].isin(trials).to_numpy(dtype=bool)
    if member.sum() < FEWEST:
        return []
    found = []
    for column in params.columns:
        own = has[column].to_numpy(dtype=bool)
        if not own[member].all():
            continue  # the front has settings of both kinds, with it and without
        values = params.loc[own, column].tolist()
        if not varies(params.loc[own, column]):
            continue
        judged = _numbers if all(_is_number(value) for value in values) else _choices
        found.append(judged(column[len(PARAM) :], values, [bool(value) for value in member[own]]))
    return sorted((one for one in found if one.chance * len(found) < CHANCE), key=lambda one: one.chance)


def common_text(searched: pd.DataFrame, trials: list[str], space: Space | None = None) -> str:
    """The same as one sentence; empty where there are too few settings on the front to say anything."""
    if len(trials) < FEWEST:
        return ""
    found, count = alike(searched, trials, space), len(trials)
    if not found:
        return (
            f"The {count} settings on the front have nothing in common that {count} random ones of the {len(searched)} "
            "would not have."
        )
    return f"What the {count} settings on the front have in common: {'; '.join(one.words for one in found)}."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(name: str, values: list[Any], member: list[bool]) -> Alike:
    """By the ranks: how many of all lie between the least and the greatest of the front."""
    front = [value for value, own in zip(values, member, strict=True) if own]
    low, high = min(front), max(front)
    n, k, between = len(values), len(front), sum(low <= value <= high for value in values)
    # Of all subsets of k, those that reach over no more than so many ranks: counted by their least member.
    narrow = (n - between) * math.comb(between - 1, k - 1) + math.comb(between, k)
    here = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return Alike(name, f"{name} {here} (tried: {min(values):.3g} to {max(values):.3g})", narrow / math.comb(n, k))


def _choices(name: str, values: list[Any], member: list[bool]) -> Alike:
    """By the choice that is most frequent on the front, over what it would be by chance."""
    words = [str(value) for value in values]
    front = [word for word, own in zip(words, member, strict=True) if own]
    choice = max(sorted(set(front)), key=front.count)
    n, k, many, here = len(words), len(front), words.count(choice), front.count(choice)
    at_least = sum(math.comb(many, i) * math.comb(n - many, k - i) for i in range(here, min(k, many) + 1))
    # Any of the choices could have been the frequent one.
    chance = min(1.0, len(set(words)) * at_least / math.comb(n, k))
    return Alike(name, f"{name} {choice} in {here} of {k} (tried: {many} of {n})", chance)
