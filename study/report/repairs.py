"""The table of a study's repairs in words, as a paper or a page of the manual has it, see `study.results.repairs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from study.report.markdown import markdown_table
from study.results.repairs import Less, Repair, less_others, repairs
from study.results.rows import PLACE

ATTACK = PLACE.index("attack")
POINT = 0.01
GONE, ASR, ACCURACY = "gone", "ASR", "clean accuracy"


def repairs_markdown(frame: pd.DataFrame, order: Sequence[str] = (), less: str | None = None) -> str:
    """A table for each combination, data set and model, its attacks beside each other.

    Args:
        frame: rows of a ledger.
        order: labels as the rows shall stand; others follow.
        less: a label; what it has more than each other repair in the same run then follows, see `repairs.less_others`.

    Raises:
        ValueError: ``less`` is no repair of this study.
    """
    found = repairs(frame)
    differences = less_others(frame, less) if less is not None else {}
    parts = []
    for place in dict.fromkeys(key[:ATTACK] for key in found):
        attacks = {key[ATTACK]: runs for key, runs in found.items() if key[:ATTACK] == place}
        parts.append(f"{' '.join(filter(None, place))}:")
        parts.append(_repairs_table(attacks, order))
        others = {key[ATTACK]: found for key, found in differences.items() if key[:ATTACK] == place}
        if others:
            parts.append(
                f"`{less}` less another repair in the same run, in points, with 95 % intervals over the attackers:"
            )
            parts.append(_differences_table(others, order))
    return "\n\n".join(parts) if parts else "no repair of a model with a backdoor is finished yet"


def _repairs_table(attacks: dict[str, list[Repair]], order: Sequence[str]) -> str:
    labels = _sorted((run.label for runs in attacks.values() for run in runs), order)
    head, rows = [""], {label: [f"`{label}`"] for label in labels}
    for attack, runs in attacks.items():
        head += [f"{attack}: {GONE}", ASR, ACCURACY]
        by_label = {run.label: run for run in runs}
        for label, cells in rows.items():
            cells += _cells(by_label.get(label))
    return markdown_table(head, rows.values())


def _differences_table(attacks: dict[str, dict[str, Less]], order: Sequence[str]) -> str:
    labels = _sorted((label for found in attacks.values() for label in found), order)
    head, rows = ["less that of"], {label: [f"`{label}`"] for label in labels}
    for attack, found in attacks.items():
        head += [f"{attack}: {ACCURACY}", ASR]
        for label, cells in rows.items():
            cells += _less(found[label]) if label in found else ["", ""]
    return markdown_table(head, rows.values())


def _cells(run: Repair | None) -> list[str]:
    if run is None:
        return ["", "", ""]
    gone = "" if run.label == "none" else f"{run.gone} of {run.runs}"
    gone += f" ({run.broken} broken)" if run.broken else ""
    if run.asr is None or run.clean_accuracy is None:
        return [gone, "", ""]
    low, high = run.clean_accuracy
    accuracy = f"{run.mean_accuracy:.3f} ({low:.3f} to {high:.3f})" if run.runs > 1 else f"{low:.3f}"
    return [gone, f"{run.asr[0]:.3f} to {run.asr[1]:.3f}" if run.runs > 1 else f"{run.asr[0]:.3f}", accuracy]


def _less(one: Less) -> list[str]:
    counted = f" ({one.pairs} of {one.of} pairs)" if one.pairs < one.of else ""
    return [f"{rate.in_words(1, POINT)}{counted}" for rate in (one.clean_accuracy, one.asr)]


def _sorted(labels: Iterable[str], order: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(labels))
    return sorted(found, key=lambda label: order.index(label) if label in order else len(order))
