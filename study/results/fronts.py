"""Pareto front, hypervolume, knee and picks of a study: pure functions of ledger rows (``ledger.to_frame``).

A point is (ASR, clean accuracy) of a setting, both fractions in [0, 1]; ASR is minimised, clean accuracy maximised.
Leak rule: what is on the front, the knee and the picks are chosen on the search half of the test set; the values to
read are those of the report half, which no choice has seen. That holds for the values of each setting. An area over
several of them (hypervolume) takes at each ASR the best of those on the front, so it is a little too large on either
half, the more so the more settings the front has and the fewer test images there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.record.columns import PARAM
from study.results.in_words import models_of, settings_text
from study.results.pareto import PICKS, RunningFront, hypervolume, hypervolume_box, knee, non_dominated_indices, picks
from study.results.rows import ALL_ATTACKS, GROUP, is_shared, rule_of
from study.results.settings import aggregate, aggregate_all, candidates
from study.spec.over_attacks import MEAN, WORST_CASE
from trainables.evaluation.metrics import der

_FRONT_VALUES = (
    *("asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report", "robust_accuracy_report"),
    *("asr_before_report", "clean_accuracy_before_report", "charged_epochs", "wall_seconds", "cells", "published"),
    *("start", "models", "models_counted", "status", "collapsed", "aggregate"),
)
FRONT_COLUMNS = (*GROUP, "defense", "rank", "trial", *_FRONT_VALUES, "der_report", "is_knee", "picks")


def non_dominated(frame: pd.DataFrame, asr: str = "asr_search", ca: str = "clean_accuracy_search") -> pd.DataFrame:
    """Rows on the front, ASR ascending; rows without both values are no candidates, of equal rows the first stays."""
    candidates = frame.dropna(subset=[asr, ca])
    return candidates.iloc[non_dominated_indices(candidates[[asr, ca]].to_numpy(dtype=float))]


def on_front(settings: pd.DataFrame) -> pd.DataFrame:
    """Settings (of one group) on the front of the search half, ASR ascending.

    A collapsed model is no candidate: with ASR 0 by accident it would be one end of every front.
    """
    return non_dominated(settings[~settings["collapsed"].astype(bool)])


def fronts(frame: pd.DataFrame) -> pd.DataFrame:
    """Front of the searched settings per (dataset, model, attack, defense), as in front.csv; see `on_front`.

    Members are chosen on the search half and ranked from least ASR; both halves' values, knee and picks are given,
    the settings follow as ``param.*``. Failed trials, collapsed models and backdoors that were not implanted never
    enter; a diverged trial is an ordinary, bad point.
    """
    table = candidates(frame)
    parts = [_front_of(group) for _, group in table.groupby(list(GROUP), sort=True, dropna=False)]
    params = [name for name in frame.columns if name.startswith(PARAM)]
    if not parts:
        return pd.DataFrame(columns=[*FRONT_COLUMNS, *params])
    return pd.concat(parts, ignore_index=True)[[*FRONT_COLUMNS, *params]]


def fronts_by_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Of settings that were scored over several attacks, the front by their means, that of the worst case, the study's.

    One row per member: `GROUP`, ``rule``, ``trial``; ``asr_report`` and ``clean_accuracy_report`` by that rule; and the
    same by means and in the worst case, ``*_mean`` and ``*_worst``. Empty where no search was over several attacks.
    """
    values = ["asr_report", "clean_accuracy_report"]
    columns = [*GROUP, "rule", "trial", *values, *(f"{name}_{rule}" for name in values for rule in (MEAN, WORST_CASE))]
    if not is_shared(frame):
        return pd.DataFrame(columns=columns)
    tables = {rule: aggregate(frame, True, rule) for rule in dict.fromkeys((MEAN, WORST_CASE, rule_of(frame)))}
    tables = {rule: one[(one["role"] == "search") & one["complete"]] for rule, one in tables.items()}
    names = [*GROUP, "trial"]
    judged = [tables[one].set_index(names)[values].add_suffix(f"_{one}") for one in (MEAN, WORST_CASE)]
    both = judged[0].join(judged[1])
    found = [
        on_front(group).assign(rule=str(rule)).join(both, on=names)
        for rule, one in tables.items()
        for _, group in one.groupby(list(GROUP), sort=True, dropna=False)
    ]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def marked(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with ``on_front`` told of those that belong to a search: whether it has their setting on its front.

    Where settings were scored over several attacks, that is the front over all of them.
    """
    members = fronts(frame)
    if is_shared(frame):
        members = members[members["attack"] == ALL_ATTACKS]
    searched = frame["role"].fillna("search") == "search"
    return frame.assign(on_front=frame["trial"].isin(members["trial"]).astype("boolean").where(searched))


def hypervolume_over_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Hypervolume after each finished setting: GROUP columns, ``finished`` (1, 2, ...), ``search`` and ``report``.

    Settings that were dropped in a race are among them: they were tried, and change nothing.
    ``search`` never falls. ``report`` is the hypervolume on the report half of the settings that are on the search-half
    front at that time; it may fall, and the gap between the two is the luck in the selection (most of it: see above).
    """
    records: list[tuple[Any, ...]] = []
    table = aggregate_all(frame)
    tried = table[(table["role"] == "search") & (table["complete"] | table["dropped"])]
    for keys, group in tried.groupby(list(GROUP), sort=True, dropna=False):
        running = RunningFront()
        search = report = 0.0
        names = ["asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report"]
        sound = ~(group["collapsed"].astype(bool) | group["dropped"]).to_numpy(dtype=bool)
        for finished, (a, c, a_report, c_report) in enumerate(group[names].to_numpy(dtype=float), start=1):
            if sound[finished - 1] and running.add(a, c, (a_report, c_report)):
                search, report = running.hypervolume, hypervolume(running.elsewhere)
            records.append((*keys, finished, search, report))
    return pd.DataFrame(records, columns=[*GROUP, "finished", "search", "report"])


def compare(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Studies side by side, for ``superft front A B``: one row per group and study (the key), groups together.

    ``hypervolume_search``/``_report`` and ``box_search``/``_report`` (second box); the knee's and the picks' values
    on the report half (``knee_*``, ``asr_drop_*``: report-half ASR of that pick); ``best_clean_accuracy``:
    report-half accuracy of the most accurate setting with ASR <= 0.1 on the search half. Missing values: nothing
    satisfies the condition.
    """
    records = []
    for name, frame in frames.items():
        for keys, group in candidates(frame).groupby(list(GROUP), sort=True, dropna=False):
            front = _front_of(group)
            halves = {
                half: front[[f"asr_{half}", f"clean_accuracy_{half}"]].to_numpy(float) for half in ("search", "report")
            }
            before = {half: float(group[f"clean_accuracy_before_{half}"].mean()) for half in ("search", "report")}
            bends = front[front["is_knee"]]
            record = {**dict(zip(GROUP, keys, strict=True)), "study": name, "trials": len(group), "front": len(front)}
            record["models"] = models_of(group.iloc[0])
            record |= {f"hypervolume_{half}": hypervolume(points) for half, points in halves.items()}
            record |= {f"box_{half}": hypervolume_box(points, before[half]) for half, points in halves.items()}
            for metric in ("asr", "clean_accuracy"):
                record[f"knee_{metric}"] = float(bends[f"{metric}_report"].iloc[0]) if len(bends) else np.nan
            record["knee_settings"] = settings_text(bends.iloc[0]) if len(bends) else ""
            for pick in PICKS:
                chosen = front[front["picks"].str.split(";").map(lambda labels, pick=pick: pick in labels)]
                record[f"asr_{pick}"] = float(chosen["asr_report"].iloc[0]) if len(chosen) else np.nan
            removed = front[front["asr_search"] <= 0.1]
            record["best_clean_accuracy"] = float(removed["clean_accuracy_report"].iloc[-1]) if len(removed) else np.nan
            records.append(record)
    columns = [
        *GROUP,
        "study",
        "trials",
        "front",
        "models",
        "hypervolume_search",
        "hypervolume_report",
        "box_search",
        "box_report",
    ]
    columns += [
        "knee_asr",
        "knee_clean_accuracy",
        "knee_settings",
        *(f"asr_{pick}" for pick in PICKS),
        "best_clean_accuracy",
    ]
    return pd.DataFrame(records, columns=columns).sort_values([*GROUP], kind="stable").reset_index(drop=True)


def _front_of(group: pd.DataFrame) -> pd.DataFrame:
    front = on_front(group).copy()
    points = front[["asr_search", "clean_accuracy_search"]].to_numpy(dtype=float)
    labels: list[list[str]] = [[] for _ in range(len(front))]
    before = (float(front[f"{metric}_before_search"].mean()) for metric in ("asr", "clean_accuracy"))
    for label, index in picks(points, *before).items():
        labels[index].append(label)
    front["rank"] = np.arange(1, len(front) + 1)
    bend = knee(points) if len(front) else None
    front["is_knee"] = [place == bend for place in range(len(front))]
    front["picks"] = [";".join(names) for names in labels]
    front["der_report"] = [
        der(*values)
        for values in front[
            ["asr_before_report", "asr_report", "clean_accuracy_before_report", "clean_accuracy_report"]
        ]
        .to_numpy(dtype=float)
        .tolist()
    ]
    return front
