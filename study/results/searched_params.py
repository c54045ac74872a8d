"""What was searched, as columns: of each setting its parameters, and whether it has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from search_spaces.space import Space
from study.record.columns import PARAM
from study.results.in_words import settings_of

_LOG_RATIO = 10.0


def searched_params(settings: pd.DataFrame, space: Space | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Columns ``param.NAME`` of values, and the same of whether a setting has it; rows as those of ``settings``.

    Args:
        settings: rows of one group as of `settings.candidates`.
        space: whose parameters to give, where some of them belong to some settings alone: a column of None may then be
            a value. None: the settings of the defense, as they stand in the rows.
    """
    if space is None:
        used = [c for c in settings.columns if c.startswith(PARAM) and settings[c].notna().any()]
        return settings[used], settings[used].notna()
    points = [space.params_of(settings_of(row)) for _, row in settings.iterrows()]
    columns = {f"{PARAM}{name}": [point.get(name) for point in points] for name in space.distributions}
    had = {f"{PARAM}{name}": [name in point for point in points] for name in space.distributions}
    return pd.DataFrame(columns, settings.index, dtype=object), pd.DataFrame(had, settings.index)


def varies(values: pd.Series[Any]) -> bool:
    """Whether a column holds more than one value; None is a value."""
    return len(set(map(str, values))) > 1


def by_logarithm(numbers: Sequence[float]) -> bool:
    """Whether a parameter of these values was searched, and is compared, by its logarithm: positive, of a wide span."""
    low, high = min(numbers), max(numbers)
    return bool(low > 0 and high / low > _LOG_RATIO)
