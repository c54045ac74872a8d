"""What became of repaired models, as tables: re-injection, membership and more, beside the models to read against."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from trainables.evaluation.aftermath.settings import FROM_SCRATCH, PARTS, UNDEFENDED

# What tells one repaired model from another.
MODEL = ("combination", "dataset", "model", "attack", "defense_label", "role", "trial", "seed", "defense_seed")
REINJECTION, RETUNING, MEMBERSHIP, CONNECTIVITY = PARTS
CLEAN_CONTROL, NOT_REPAIRED = "clean model", "undefended"


def reinjection_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per repaired model and arm; empty where no row of the ledger has a re-injection.

    Columns: `MODEL`, ``shown_as`` (see `shown_as`), ``arm``, ``lr``, ``poisoned`` (images), ``asr_start``, ``asr_end``,
    ``accuracy_start``, ``accuracy_end``, ``steps_to_half``, ``steps_to_90`` (missing: not reached), ``area`` (mean ASR
    over the training), ``area_over_clean`` (over that of the clean model in the same arm, of the same seed, which is
    taken to be one test image at least: of a clean model that never obeys, the ratio is a lower bound; missing where
    there is none), ``steps_to_half_over_clean`` likewise (missing where one of the two never got there), ``diverged``,
    ``n_triggered`` (images that an ASR is measured on).
    """
    rows = []
    for row, records in _records(frame, REINJECTION):
        for one in records:
            rows.append(
                {
                    **_place(row),
                    **{name: one[name] for name in ("arm", "lr", "poisoned")},
                    "asr_start": one["asr"][0],
                    "asr_end": one["asr"][-1],
                    "accuracy_start": one["clean_accuracy"][0],
                    "accuracy_end": one["clean_accuracy"][-1],
                    **{name: one[name] for name in ("steps_to_half", "steps_to_90", "area", "diverged")},
                    "n_triggered": row["n_triggered_report"],
                }
            )
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).astype({"steps_to_half": "Int64", "steps_to_90": "Int64"})
    keys = ["combination", "dataset", "model", "attack", "seed", "arm", "lr"]
    clean = table[table["shown_as"] == CLEAN_CONTROL].drop_duplicates(keys).set_index(keys)
    least = 1.0 / _floats(table["n_triggered"])
    table["area_over_clean"] = table["area"] / _floats(_looked_up(table, clean["area"], keys)).clip(lower=least)
    steps = _floats(_looked_up(table, clean["steps_to_half"], keys))
    table["steps_to_half_over_clean"] = _floats(table["steps_to_half"]) / steps.where(steps > 0)
    return table


def reinjection_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured step: `MODEL`, ``shown_as``, ``arm``, ``lr``, ``step``, ``epoch``, ``asr``, the accuracy."""
    rows = []
    for row, records in _records(frame, REINJECTION):
        for one in records:
            place = {**_place(row), "arm": one["arm"], "lr": one["lr"]}
            for step, asr, accuracy in zip(one["steps"], one["asr"], one["clean_accuracy"], strict=True):
                epoch = step / one["steps_per_epoch"]
                rows.append({**place, "step": step, "epoch": epoch, "asr": asr, "clean_accuracy": accuracy})
    return pd.DataFrame(rows)


def retuning_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per repaired model, number of poisoned images and draw; empty where no row of the ledger has any.

    Columns: `MODEL`, ``shown_as``, ``poisoned``, ``images``, ``draw``, ``o_asr``, ``p_asr``, ``accuracy_start``,
    ``accuracy_end``, ``steps`` (of the fine-tuning), ``diverged``.
    """
    names = ("poisoned", "images", "draw", "o_asr", "p_asr", "accuracy_start", "accuracy_end")
    return pd.DataFrame(
        {**_place(row), **{name: one[name] for name in names}, "steps": one["steps"][-1], "diverged": one["diverged"]}
        for row, records in _records(frame, RETUNING)
        for one in records
    )


def connectivity_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per repaired model and way of taking the running statistics; empty where no row of the ledger has any.

    Columns: `MODEL`, ``shown_as``, ``statistics``, ``asr_repaired``, ``asr_backdoored`` (at the ends of the way),
    ``share_half``, ``barrier``, ``accuracy_lowest`` (see `connectivity.summary`).
    """
    names = ("statistics", "share_half", "barrier", "accuracy_lowest")
    return pd.DataFrame(
        {
            **_place(row),
            **{name: one[name] for name in names},
            "asr_repaired": one["asr"][0],
            "asr_backdoored": one["asr"][-1],
        }
        for row, records in _records(frame, CONNECTIVITY)
        for one in records
    )


def connectivity_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured point of the way: `MODEL`, ``shown_as``, ``statistics``, ``share``, ``asr``, accuracy."""
    return pd.DataFrame(
        {
            **_place(row),
            "statistics": one["statistics"],
            **dict(zip(("share", "asr", "clean_accuracy"), point, strict=True)),
        }
        for row, records in _records(frame, CONNECTIVITY)
        for one in records
        for point in zip(one["share"], one["asr"], one["clean_accuracy"], strict=True)
    )


def membership_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per repaired model, group of members and attack; empty where no row of the ledger has any.

    Columns: `MODEL`, ``shown_as``, ``group`` (clean, defender, poisoned), ``membership_attack``, ``images``, ``auc``,
    ``balanced_accuracy``, ``tpr_at_1_percent``, ``tpr_at_01_percent``, ``train_accuracy``, ``test_accuracy``, ``gap``,
    and ``auc_over_undefended``, ``auc_over_clean``: the AUC less that of the undefended and of the clean model.
    """
    rows = []
    for row, records in _records(frame, MEMBERSHIP):
        for one in records:
            rest = {name: value for name, value in one.items() if name != "attack"}
            rows.append({**_place(row), "membership_attack": one["attack"], **rest})
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    for name in ("tpr_at_1_percent", "tpr_at_01_percent", "auc"):
        table[name] = table[name].astype("float64")
    keys = ["combination", "dataset", "model", "attack", "seed", "group", "membership_attack"]
    for name, shown in (("undefended", NOT_REPAIRED), ("clean", CLEAN_CONTROL)):
        against = table[table["shown_as"] == shown].drop_duplicates(keys).set_index(keys)["auc"]
        table[f"auc_over_{name}"] = table["auc"] - _floats(_looked_up(table, against, keys))
    return table


def shown_as(row: Mapping[str, Any]) -> str:
    """What a repaired model is called beside the others: its defense, or which of the models to read against it is."""
    if row["role"] == "control":
        own = "" if row["defense"] == UNDEFENDED else f", {row['defense_label']}"
        return f"{CLEAN_CONTROL}{own}"
    if row["defense"] == UNDEFENDED:
        return NOT_REPAIRED
    label = str(row["defense_label"])
    return label if row["role"] != "search" else f"{label}, {'published' if row['published'] else row['trial']}"


def reading_order(names: list[str]) -> list[str]:
    """The models to read against first and last: undefended, then the repairs, then from scratch and clean."""

    def place(name: str) -> tuple[int, str]:
        if name.startswith(CLEAN_CONTROL):
            return 3, name
        return {NOT_REPAIRED: 0, FROM_SCRATCH: 2}.get(name, 1), name

    return sorted(names, key=place)


def without_other_settings(table: pd.DataFrame) -> pd.DataFrame:
    """The same without searched settings that are not the published point: a page shows no hundreds of models."""
    return table[(table["role"] != "search") | table["shown_as"].str.endswith(", published")]


def _records(frame: pd.DataFrame, column: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of the ledger with such a column, and what it holds."""
    if column not in frame:
        return
    for row in frame[frame[column].notna()].to_dict("records"):
        yield {str(name): value for name, value in row.items()}, json.loads(row[column])


def _place(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: row[name] for name in MODEL}, "shown_as": shown_as(row)}


def _looked_up(table: pd.DataFrame, values: pd.Series[Any], keys: list[str]) -> list[Any]:
    """For each row the value under its keys; None where there is none."""
    known = values.to_dict()
    return [known.get(place) for place in table[keys].itertuples(index=False, name=None)]


def _floats(values: Iterable[Any]) -> pd.Series[float]:
    """Numbers as float64; missing ones as NaN."""
    return pd.Series([math.nan if pd.isna(value) else float(value) for value in values], dtype="float64")
