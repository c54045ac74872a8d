"""The first thing on the page where several seeds were run: in how many runs each repair removed the backdoor.

After a repair the attack success rate is near 0 or near 1, so a mean over seeds says little by itself.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from study.report.html import Table, table_html
from study.results.outcomes import NO_BACKDOOR, OUTCOMES, REMOVED, REMOVED_ASR
from study.results.rows import ALL_ATTACKS, GROUP
from study.results.verdicts import Verdict
from trainables.evaluation.metrics import wilson

CAPTION = (
    f'<p class="caption">Runs on a backdoored model after which at most {REMOVED_ASR:.0%} of triggered images still go '
    "to the attacker's class (report half), in a model that still classifies. A run is one attacker's seed with one "
    "defender's seed. <i>Tuned</i>: what the search picks if it may lose 1 point of clean accuracy; it was chosen with "
    "knowledge of the trigger, on these very models.</p>"
)


def gone_html(table: pd.DataFrame, counts: pd.DataFrame, pairs: list[tuple[str, Verdict]]) -> str:
    """The table of one data set and model; empty where no setting has several runs.

    Args:
        table: rows of ``settings.aggregate`` of it.
        counts: ``outcomes.outcome_counts`` of the study.
        pairs: (attack, verdict) of every search.
    """
    table = table[table["attack"] != ALL_ATTACKS]
    tuned = {one.tuned["trial"]: one for _, one in pairs if one.tuned is not None and not one.tuned["published"]}
    cells: dict[str, dict[str, str]] = {}
    several, attackers = False, 0
    for name, one in _told(table, tuned):
        attackers = max(attackers, int(one["models_counted"]))
        runs = counts.loc[tuple(one[key] for key in (*GROUP, "role", "trial"))]
        meant = int(runs[list(OUTCOMES)].sum())
        several |= meant > 1
        said = f"{int(runs[REMOVED])} of {meant}" if meant else "no backdoor"
        said += f" ({int(runs[NO_BACKDOOR])} more had none)" if meant and runs[NO_BACKDOOR] else ""
        cells.setdefault(name, {})[str(one["attack"])] = said
    if not several:
        return ""
    rows: Table = [{"backdoor gone in": name, **found} for name, found in cells.items()]
    return table_html(rows) + CAPTION + all_of(attackers)


def all_of(attackers: int) -> str:
    """What a row without a single failure says of attackers that were not tried."""
    if attackers < 2:
        return ""
    least = wilson(attackers, attackers)[0]
    return (
        f'<p class="caption">Gone in all {attackers} of {attackers} attackers means in {least:.0%} or more of all that '
        "there are (95 %): more attackers would tell more, more defenders or images would not.</p>"
    )


def _told(table: pd.DataFrame, tuned: dict[Any, Verdict]) -> list[tuple[str, pd.Series[Any]]]:
    """The settings that the table names: of each search the published and the tuned one, then the baselines."""
    found: list[tuple[str, pd.Series[Any]]] = []
    searched = table[table["role"] == "search"]
    for label, group in searched.groupby("defense_label", sort=True):
        found += [(f"{label}, published", one) for _, one in group[group["published"].astype(bool)].iterrows()]
        found += [(f"{label}, tuned", one) for _, one in group[group["trial"].isin(tuned)].iterrows()]
    baselines = table[(table["role"] == "baseline") & (table["defense"] != "none")]
    found += [(str(one["defense_label"]), one) for _, one in baselines.sort_values("defense_label").iterrows()]
    return found
