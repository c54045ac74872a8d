"""Chosen settings on fresh seeds: what the choice flattered, the winner's curse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.plan.jobs import CONFIRM
from study.results.fronts import fronts
from study.results.intervals import jackknife
from study.results.rows import ALL_ATTACKS, GROUP, is_shared, true_status
from study.results.scores import NOT_IMPLANTED
from study.results.settings import AS_TOLD, aggregate_all

RATES = ("asr", "clean_accuracy")
_NAMED = ("is_knee", "picks", "asr_report", "clean_accuracy_report")
COLUMNS = (*GROUP, "trial", *_NAMED, *(f"{rate}_confirmed" for rate in RATES), "models", "models_counted", "ruined")


def confirmed_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting that is on a front and was measured on a fresh seed, in the order of `fronts`.

    ``asr_report`` and ``clean_accuracy_report`` are those of the search, ``*_confirmed`` those of the fresh seeds, on
    the report half too and over several attacks by the study's rule; ``models`` and ``models_counted`` are of the fresh
    seeds: runs that failed and victims without a backdoor do not count. ``ruined``: how many of them collapsed or
    diverged; such a model counts as the worst there is, for its ASR may be 0 by accident.
    """
    rows = frame[frame["role"].eq(CONFIRM)]
    if not len(rows):
        return pd.DataFrame(columns=list(COLUMNS))
    return _beside(_chosen(frame), rows)


def winners_curse(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per search (`GROUP`): confirmed less searched, the mean over its confirmed settings.

    Columns: ``seeds``, ``settings``, and of ``asr`` and ``clean_accuracy`` the difference with ``_low`` and ``_high``,
    Student's 95 % interval over the fresh seeds. Its standard error is the jackknife's (one seed left out at a time):
    for means that is the usual one, and it holds for other rules over the attacks too. All settings share the seeds,
    so the seeds are counted, not the settings; what the search measured is taken as it is. Of one seed the interval is
    all that can be, [-1, 1].
    """
    columns = [*GROUP, "seeds", "settings", *(f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high"))]
    whole = confirmed_settings(frame)
    if not len(whole):
        return pd.DataFrame(columns=columns)
    rows, members = frame[frame["role"].eq(CONFIRM)], _chosen(frame)
    rows = rows[~true_status(rows).isin(["failed", NOT_IMPLANTED])]
    less_one = {seed: _beside(members, rows[rows["seed"].ne(seed)]) for seed in sorted(rows["seed"].unique())}
    records = []
    for keys, group in whole.groupby(list(GROUP), sort=True, dropna=False):
        place = dict(zip(GROUP, keys, strict=True))
        seeds = _of(rows, {key: value for key, value in place.items() if value != ALL_ATTACKS})["seed"].unique()
        parts = [_of(less_one[seed], place) for seed in seeds] if len(seeds) > 1 else []
        record = {**place, "seeds": len(seeds), "settings": len(group)}
        for rate in RATES:
            found = jackknife(_difference(group, rate), [_difference(part, rate) for part in parts])
            record |= {rate: found.value, f"{rate}_low": found.low, f"{rate}_high": found.high}
        records.append(record)
    return pd.DataFrame(records, columns=columns)


def _difference(confirmed: pd.DataFrame, rate: str) -> float:
    """Confirmed less searched, the mean over settings."""
    return float((confirmed[f"{rate}_confirmed"] - confirmed[f"{rate}_report"]).astype(float).mean())


def _of(table: pd.DataFrame, place: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table that have these values."""
    same = pd.Series(True, table.index)
    for key, value in place.items():
        same &= table[key] == value
    return table[same]


def _chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Members of the fronts that the searches have: where they are over several attacks, the front over all of them."""
    members = fronts(frame)
    return members[members["attack"] == ALL_ATTACKS] if is_shared(frame) else members


def _beside(members: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Members of fronts beside what these rows of fresh seeds say of them; those without a result are left out."""
    if not len(rows):
        return pd.DataFrame(columns=list(COLUMNS))
    # As if they were a study of their own; `.../confirm/0007` is what the search called `.../0007`.
    ids = rows["trial"].str.replace(rf"/{CONFIRM}/(?=[^/]*$)", "/", regex=True)
    table = aggregate_all(rows.assign(role="search", trial=ids))
    names = [*GROUP, "trial"]
    found = table.set_index(names)[[*AS_TOLD.values(), "models", "models_counted", "ruined"]]
    found.columns = pd.Index([*(f"{rate}_confirmed" for rate in RATES), "models", "models_counted", "ruined"])
    kept = members[[*names, *_NAMED]].join(found, on=names, how="inner")
    return kept.dropna(subset=[f"{rate}_confirmed" for rate in RATES])[list(COLUMNS)].reset_index(drop=True)
