"""What became of each run, and of the runs behind each setting: pure functions of ledger rows.

Whether a victim has a backdoor is decided where it is measured: `trainables.victims.victim`.
"""

from __future__ import annotations

import pandas as pd

from study.results.rows import GROUP, collapsed, true_status
from study.results.scores import STATUSES

NO_BACKDOOR, REMOVED = "no_backdoor", "removed"
REMOVED_ASR = 0.1  # at most so much, and the backdoor counts as removed
# From best to worst; a collapsed model is in none of the others, NO_BACKDOOR measured nothing.
OUTCOMES = ("ok", "abstained", "collapsed", "diverged", "failed")


def outcome_of(frame: pd.DataFrame) -> pd.Series[str]:
    """Outcome of each row: one of OUTCOMES, or NO_BACKDOOR where its victim held none."""
    status = true_status(frame)
    known = status.map({**{name: name for name in STATUSES}, "backdoor_not_implanted": NO_BACKDOOR})
    outcome: pd.Series[str] = known.mask(collapsed(frame) & status.isin(["ok", "abstained"]), "collapsed")
    return outcome


def outcome_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each setting came out how: index (*GROUP, role, trial), a column per outcome, and REMOVED.

    REMOVED counts the runs that came out ``ok`` with at most REMOVED_ASR on the report half: after a repair ASR is near
    0 or near 1, so a mean over seeds says little without it.
    """
    outcome = outcome_of(frame)
    rows = frame[list(GROUP)].assign(role=frame["role"].fillna("search"), trial=frame["trial"])
    columns = {name: outcome == name for name in (*OUTCOMES, NO_BACKDOOR)}
    columns[REMOVED] = columns["ok"] & (frame["asr_report"].astype("float64") <= REMOVED_ASR)
    rows = rows.assign(**{name: flags.astype(int) for name, flags in columns.items()})
    return rows.groupby([*GROUP, "role", "trial"], dropna=False, sort=False)[list(columns)].sum()
