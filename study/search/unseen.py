"""Settings of a small space that were not asked yet, for when a sampler only repeats itself."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

from search_spaces.space import LARGEST_SPACE, fingerprint, points
from study.plan.jobs import Search
from trainables.seeding import derive_seed


def grid(search: Search) -> list[Sequence[Any]]:
    """The values of each parameter in a space of few points, else nothing."""
    choices = [points(item) for item in search.space.distributions.values()]
    return choices if 0 < math.prod(map(len, choices)) <= LARGEST_SPACE else []


def unseen_params(
    search: Search, choices: Sequence[Sequence[Any]], known: Container[str], count: int
) -> dict[str, Any] | None:
    """Parameters whose settings are not ``known`` by their fingerprint; None when all are.

    Args:
        choices: of `grid`.
        count: of the known ones; decides where the look begins.
    """
    size = math.prod(map(len, choices))
    # Not in order: the first points of a grid all lie at one border.
    first = derive_seed(count, "unseen") % size
    for number in (*range(first, size), *range(first)):
        params = {}
        for name, values in zip(search.space.distributions, choices, strict=True):
            number, index = divmod(number, len(values))
            params[name] = values[index]
        own = {name: params[name] for name in search.space.names_of(params)}
        if fingerprint(search.settings(own)) not in known:
            return own
    return None
