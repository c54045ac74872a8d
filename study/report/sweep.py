"""The report's part on a sweep: all combinations in one figure and one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report.figures.style import as_png
from study.report.figures.sweep import axis_of, sweep_panels, sweep_png
from study.report.html import Table, embedded, escape, folded, rate, slug, table_html
from study.results.in_words import models_of
from study.results.rows import ALL_ATTACKS
from study.spec.combinations import in_words, names_of

SWEEP = "sweep"  # figures are called so
CAPTION = (
    '<p class="caption">One line for each attack and defense (a baseline, or the published setting of a search); the '
    "band reaches from the least to the most over its runs. The colour is the attack's, the line the defense's: full, "
    "with marks, of those that the study asks about; thin and broken of those that it sets apart, or of all but the "
    "first. Faint and dotted: the models before repair. Report half; a model "
    "that collapsed counts as the worst there is, with an ASR of 100 % and an accuracy of 0. The sections below show "
    "every combination by itself.</p>"
)


def sweep_section(table: pd.DataFrame, frame: pd.DataFrame, spec: Mapping[str, Any]) -> tuple[str, dict[str, bytes]]:
    """HTML of what a sweep shows, and its figures for print by name; nothing where a study sweeps nothing.

    Args:
        table: rows of ``settings.aggregate``.
        frame: ledger rows.
        spec: study.yaml, as written.
    """
    sweep = spec.get("sweep")
    known = frame[frame["swept"].notna()].drop_duplicates("combination")
    if not isinstance(sweep, Mapping) or not sweep or not len(known):
        return "", {}
    swept = dict(zip(known["combination"], known["swept"], strict=True))
    values = {name: json.loads(swept[name]) for name in names_of(sweep) if name in swept}
    keys = " and ".join(sweep)
    out = [f'<section id="page-sweep"><h2>What the sweep shows: {escape(keys)}</h2>']
    drawn: dict[str, bytes] = {}
    listed = [*(spec.get("baselines") or ()), *(spec.get("defenses") or ())]
    for number, panels in enumerate(sweep_panels(table, sweep, values, listed, spec.get("set_apart") or ())):
        png = as_png(sweep_png(f"Over {axis_of(sweep)}", panels))
        name = f"{SWEEP}_{slug(axis_of(sweep))}" + (f"-{number + 1}" if number else "")
        drawn[name] = png
        out.append(embedded(png, f"ASR and clean accuracy over {axis_of(sweep)}"))
    out.append(CAPTION)
    rows = sweep_table(table, {name: in_words(swept[name]) for name in values})
    out.append(folded("The numbers of the sweep", table_html(rows), "page-sweep-table"))
    return "\n".join([*out, "</section>"]), drawn


def sweep_table(table: pd.DataFrame, words: Mapping[str, str]) -> Table:
    """A row for each combination, attack and setting that is a baseline or published; cells are texts.

    Args:
        words: what each combination is, in the order of the sweep.
    """
    rows: Table = []
    shown = table[(table["role"] != "search") | table["published"].astype(bool)]
    shown = shown[shown["attack"] != ALL_ATTACKS]
    for name, said in words.items():
        for _, one in shown[shown["combination"] == name].sort_values(["attack", "defense_label", "role"]).iterrows():
            row = {"combination": said, "attack": str(one["attack"]), "defense": str(one["defense_label"])}
            row["role"] = "published" if one["role"] == "search" else str(one["role"])
            if pd.isna(one["asr_report"]):
                rows.append(row | {"status": str(one["status"])})
                continue
            row["ASR"] = rate(one, "asr")
            row["clean accuracy"] = rate(one, "clean_accuracy")
            row["ASR before"] = percent(one["asr_before_report"])
            row["accuracy before"] = percent(one["clean_accuracy_before_report"])
            row["runs"] = str(one["cells"]) + (
                f", {one['ruined']} ruined" if one["ruined"] and one["cells"] > 1 else ""
            )
            row["models"] = models_of(one)
            row["status"] = "collapsed" if one["collapsed"] and one["status"] == "ok" else str(one["status"])
            rows.append(row)
    return rows
