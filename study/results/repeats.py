"""Searches that were made several times: how much of a hypervolume is the luck of one search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from study.results.fronts import on_front
from study.results.intervals import ENDS, Estimate, mean_interval
from study.results.pareto import hypervolume, hypervolume_box
from study.results.rows import GROUP, REPEAT, of_repeat
from study.results.settings import candidates

VALUES = ("hypervolume", "box")


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of hypervolumes of independent searches with Student's 95 % interval, cut to [0, 1]; of one, all of it.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("the mean of no searches; give the hypervolume of at least one")
    mean, low, high = (float(part) for part in mean_interval(np.array(values, dtype=float)))
    return Estimate(mean, low, high)


def repeated_searches(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per search (`GROUP`) that was made several times; empty where none was.

    Columns: ``searches`` with a finished setting, the study's own included; ``settings_least``, ``settings_most``
    that they finished; and of ``hypervolume`` and ``box`` (see `equal_rules.parity`) on the report half the mean with
    ``_low`` and ``_high``, that of the study's own search (``_first``), ``_least`` and ``_most``.
    """
    columns = [*GROUP, "searches", "settings_least", "settings_most"]
    columns += [f"{key}{end}" for key in VALUES for end in (*ENDS, "_first", "_least", "_most")]
    again = frame.loc[frame["role"].eq(REPEAT), "repeat"].dropna()
    if not len(again):
        return pd.DataFrame(columns=columns)
    found: dict[tuple[object, ...], list[tuple[int, int, float, float]]] = {}
    for number in range(int(again.max()) + 1):
        for keys, group in candidates(of_repeat(frame, number)).groupby(list(GROUP), sort=True, dropna=False):
            members = on_front(group)
            points = members[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float)
            before = float(group["clean_accuracy_before_report"].mean())
            values = hypervolume(points), hypervolume_box(points, before)
            found.setdefault(tuple(keys), []).append((number, len(group), *values))
    records = []
    for keys, searches in found.items():
        record = dict(zip(GROUP, keys, strict=True)) | {"searches": len(searches)}
        record |= {"settings_least": min(one[1] for one in searches), "settings_most": max(one[1] for one in searches)}
        for place, key in enumerate(VALUES, start=2):
            values_of = [float(one[place]) for one in searches]
            mean = mean_of(values_of)
            record |= {key: mean.value, f"{key}_low": mean.low, f"{key}_high": mean.high}
            record |= {f"{key}_first": values_of[0] if searches[0][0] == 0 else np.nan}
            record |= {f"{key}_least": min(values_of), f"{key}_most": max(values_of)}
        records.append(record)
    return pd.DataFrame(records, columns=columns)
