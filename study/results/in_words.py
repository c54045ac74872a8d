"""A setting in words: its values, the models that its numbers rest on, and whether its repair moved anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.record.columns import PARAM
from study.results.scores import models_in_words
from study.spec.over_attacks import parse_rule


def rule_in_words(settings: pd.DataFrame) -> str:
    """How the attacks were taken together in rows of `settings.aggregate`, for headings: ``means``, ``worst case``."""
    return parse_rule(str(settings["aggregate"].iloc[0])).in_words


def models_of(one: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """On how many of its models a setting's numbers rest, ``1 of 4 models``; nothing where there is one alone."""
    return models_in_words(int(one["models_counted"]), int(one["models"]))


def movement_text(one: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """``hardly moved`` of a setting whose repair left the model where it was, with the runs where not in all.

    Nothing where it moved in all of them, or where it was not measured.
    """
    unmoved, cells = int(one.get("unmoved", 0)), int(one["cells"])
    if not unmoved:
        return ""
    return "hardly moved" + ("" if unmoved == cells else f" in {unmoved} of {cells} runs")


def settings_of(row: Mapping[Any, Any] | pd.Series[Any]) -> dict[str, Any]:
    """The settings of a row of any table here, without those that its defense does not have."""
    return {str(name)[len(PARAM) :]: v for name, v in row.items() if str(name).startswith(PARAM) and not pd.isna(v)}


def settings_text(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Settings as ``lr_base=0.0003, iterations=500``; floats to 3 digits."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings_of(row).items())
