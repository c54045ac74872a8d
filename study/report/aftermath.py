"""Parts of report.html on what became of the repaired models of one attack."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report.html import Table, number, table_html
from study.report.markdown import markdown_table
from study.results.aftermath import (
    CLEAN_CONTROL,
    connectivity_table,
    membership_table,
    reading_order,
    reinjection_table,
    retuning_table,
    without_other_settings,
)
from study.results.rows import PLACE, backdoored, without_beside

CAPTION_REINJECTION = f"""
<p class="caption">The attacker trains each model further, on data with the same trigger as before. <b>Undefended</b>:
the victim itself. <b>{CLEAN_CONTROL.capitalize()}</b>: a model that never had the backdoor; <b>scratch</b>: one that
started from random weights. A repair that only hid the backdoor learns it again faster than these two. <b>Steps to
ASR 50 %, 90 %</b>: the first measured step, median of the runs that got there, and how many did. <b>Area</b>: mean
ASR over the training, 100 % being a backdoor that was there throughout; <b>area / clean</b>: over that of the clean
model of the same seed. The ratio is a median; where the clean model never obeys, it is a lower bound. All on the
report half, else means over the runs. The figure's axis is linear up to epoch 1 and logarithmic beyond; a band
reaches from the least to the largest run. What every single model and arm gave is in <code>reinjection.csv</code>,
the curves in <code>reinjection_curves.csv</code>. None of this is charged to a search.</p>
"""
CAPTION_RETUNING = """
<p class="caption">A short fine-tuning on a few images of the training set, some of which carry the trigger and the
attacker's label. <b>O-ASR</b>: before it; <b>P-ASR</b>: after it, median over runs and draws of the images, and from
the least to the largest. Without poisoned images (0) it says what clean fine-tuning alone does. A clean model learns
something from five images too, so P-ASR is read beside its. Every single run is in <code>retuning.csv</code>.</p>
"""
CAPTION_CONNECTIVITY = """
<p class="caption">Weights are taken on the straight line from each repaired model (0 %) to the backdoored one (100 %);
nothing is trained. <b>Back at</b>: the first measured share of the way at which ASR has come half of its way back.
<b>Barrier</b>: mean of 1 - ASR over the way; it is high where the backdoor stays away far along it. <b>Lowest
accuracy</b>: where it falls deep, that stretch has no backdoor because it has no model either. <b>Statistics</b> of
batch normalisation: <i>interpolated</i> between the two models, or <i>refreshed</i> on clean training images at every
point. The undefended model shows what no way looks like, the one from scratch what an unrelated model looks like. The
figure has a column for each kind of statistics: above, ASR, where a line that stays low until far to the right is a
repair that got away from the backdoor, and the area over it is the barrier; below, the accuracy at the same points.
Means over the runs, on the report half; a band reaches from the least to the largest run. Every point is in
<code>connectivity_curves.csv</code>.</p>
"""
CAPTION_MEMBERSHIP = """
<p class="caption">Can somebody with the model tell which images it was trained on? <b>Members</b>: <i>clean</i>:
training images of the attacker that were not poisoned; <i>defender</i>: images that the defender holds;
<i>poisoned</i>: poisoned images under the attacker's label, against triggered test images. As many non-members, of
the same classes. <b>Attack</b>: <i>loss</i>: one threshold on the loss; <i>entropy</i>: modified entropy, a threshold
per class; <i>shadow</i>: a network that learned on a shadow model; <i>lira</i>: beside shadow models that never saw
the image. Thresholds are set on one half of the images, the numbers are of the other. <b>AUC</b> 0.5 is guessing; it
differs from that by chance up to the number behind ±. <b>TPR at 1 % FPR</b> needs 100 judged non-members, at 0.1 %
1,000; a dash: there were fewer. <b>Gap</b>: accuracy on members less that on non-members; most of the AUC follows it.
<b>AUC less undefended</b>, <b>less clean</b>: compared with the victim before the repair, and with a model that was
never attacked. Every single run is in <code>membership.csv</code>.</p>
"""


TITLES = {
    "reinjection": "How quickly does the backdoor come back?",
    "retuning": "Do a few poisoned images bring the backdoor back?",
    "connectivity": "How far from the backdoored weights did the repair get?",
    "membership": "Does the model tell who was in its training set?",
}
CAPTIONS = {
    "reinjection": CAPTION_REINJECTION,
    "retuning": CAPTION_RETUNING,
    "connectivity": CAPTION_CONNECTIVITY,
    "membership": CAPTION_MEMBERSHIP,
}


def aftermath_parts(rows: pd.DataFrame, figures: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What the page says of it: key -> (title, HTML); parts without content are left out.

    Args:
        rows: of the ledger, of one attack on one data set and model.
        figures: HTML of the attack's figures by name; used are those that are called as a part.
    """
    return {
        key: (TITLES[key], figures.get(key, "") + table_html(table) + CAPTIONS[key])
        for key, table in _tables(rows).items()
    }


def aftermath_markdown(frame: pd.DataFrame) -> str:
    """The same tables of a whole study as Markdown, a part of each attack after the other.

    Args:
        frame: rows of a ledger.

    Raises:
        ValueError: the study asked for no aftermath, or no trial with one is finished.
    """
    parts = []
    for place, rows in without_beside(frame).groupby(list(PLACE), sort=False):
        for key, table in _tables(rows).items():
            head = [name for name in table[0] if any(row[name] for row in table)]
            parts.append(f"{' '.join(filter(None, map(str, place)))}: {TITLES[key]}")
            parts.append(markdown_table(head, [[row[name] for name in head] for row in table]))
    if not parts:
        raise ValueError("no row of this study holds an aftermath; ask for one with the key aftermath")
    return "\n\n".join(parts)


def _tables(rows: pd.DataFrame) -> dict[str, Table]:
    """The parts that have content, as texts. What never held a backdoor tells nothing of one that comes back."""
    held = backdoored(rows)
    made = {
        "reinjection": reinjection_cells(held),
        "retuning": retuning_cells(held),
        "connectivity": connectivity_cells(held),
        "membership": membership_cells(rows),
    }
    return {key: table for key, table in made.items() if table}


def reinjection_cells(rows: pd.DataFrame) -> Table:
    """One line per model and arm, as texts."""
    found = reinjection_table(rows)
    if not len(found):
        return []
    found = without_other_settings(found)
    arms = list(dict.fromkeys(found[["arm", "lr"]].itertuples(index=False, name=None)))
    several_rates = found["lr"].nunique() > 1
    lines: Table = []
    for arm, lr in arms:
        own = found[(found["arm"] == arm) & (found["lr"] == lr)]
        for name in reading_order(sorted(own["shown_as"].unique())):
            runs = own[own["shown_as"] == name]
            lines.append(
                {
                    "poison": f"{arm}{f', learning rate {lr:g}' if several_rates else ''}",
                    "images": " to ".join(
                        dict.fromkeys(str(v) for v in (runs["poisoned"].min(), runs["poisoned"].max()))
                    ),
                    "model": name,
                    "ASR at step 0": percent(runs["asr_start"].mean()),
                    "steps to ASR 50 %": _steps(runs["steps_to_half"]),
                    "steps to ASR 90 %": _steps(runs["steps_to_90"]),
                    "area": percent(runs["area"].mean()),
                    "area / clean": number(runs["area_over_clean"].median(), 1),
                    "ASR at the end": percent(runs["asr_end"].mean()),
                    "clean accuracy, start to end": f"{percent(runs['accuracy_start'].mean())} to "
                    f"{percent(runs['accuracy_end'].mean())}",
                    "remark": f"{int(runs['diverged'].sum())} diverged" if runs["diverged"].any() else "",
                }
            )
    return lines


def retuning_cells(rows: pd.DataFrame) -> Table:
    """One line per model and number of poisoned images, as texts."""
    found = retuning_table(rows)
    if not len(found):
        return []
    found = without_other_settings(found)
    lines: Table = []
    for count in sorted(found["poisoned"].unique()):
        own = found[found["poisoned"] == count]
        for name in reading_order(sorted(own["shown_as"].unique())):
            runs = own[own["shown_as"] == name]
            span = f"{percent(runs['p_asr'].min())} to {percent(runs['p_asr'].max())}"
            accuracy = (percent(runs[f"accuracy_{end}"].mean()) for end in ("start", "end"))
            lines.append(
                {
                    "poisoned images": f"{count} of {runs['images'].iloc[0]}",
                    "model": name,
                    "O-ASR": percent(runs["o_asr"].mean()),
                    "P-ASR": percent(runs["p_asr"].median()),
                    "from, to": span,
                    "runs and draws": str(len(runs)),
                    "steps": str(runs["steps"].iloc[0]),
                    "clean accuracy, start to end": " to ".join(accuracy),
                    "remark": f"{int(runs['diverged'].sum())} diverged" if runs["diverged"].any() else "",
                }
            )
    return lines


def connectivity_cells(rows: pd.DataFrame) -> Table:
    """One line per model and way of taking the running statistics, as texts."""
    found = connectivity_table(rows)
    if not len(found):
        return []
    found = without_other_settings(found)
    lines: Table = []
    for statistics in dict.fromkeys(found["statistics"]):
        own = found[found["statistics"] == statistics]
        for name in reading_order(sorted(own["shown_as"].unique())):
            runs = own[own["shown_as"] == name]
            lines.append(
                {
                    "statistics": str(statistics),
                    "model": name,
                    "ASR, repaired to backdoored": f"{percent(runs['asr_repaired'].mean())} to "
                    f"{percent(runs['asr_backdoored'].mean())}",
                    "back at": percent(runs["share_half"].mean()),
                    "barrier": percent(runs["barrier"].mean()),
                    "lowest accuracy": percent(runs["accuracy_lowest"].mean()),
                    "runs": str(len(runs)),
                }
            )
    return lines


def membership_cells(rows: pd.DataFrame) -> Table:
    """One line per model, group and attack, as texts."""
    found = membership_table(rows)
    if not len(found):
        return []
    found = without_other_settings(found)
    lines: Table = []
    for group in dict.fromkeys(found["group"]):
        for attack in dict.fromkeys(found["membership_attack"]):
            own = found[(found["group"] == group) & (found["membership_attack"] == attack)]
            for name in reading_order(sorted(own["shown_as"].unique())):
                runs = own[own["shown_as"] == name]
                lines.append(
                    {
                        "members": str(group),
                        "attack": str(attack),
                        "model": name,
                        "AUC": f"{number(runs['auc'].mean(), 3)} ± {number(chance(runs), 3)}",
                        "balanced accuracy": percent(runs["balanced_accuracy"].mean()),
                        "TPR at 1 % FPR": percent(runs["tpr_at_1_percent"].mean()),
                        "TPR at 0.1 % FPR": percent(runs["tpr_at_01_percent"].mean()),
                        "accuracy on members": percent(runs["train_accuracy"].mean()),
                        "on non-members": percent(runs["test_accuracy"].mean()),
                        "gap": percent(runs["gap"].mean()),
                        "AUC less undefended": _signed(runs["auc_over_undefended"].mean()),
                        "AUC less clean": _signed(runs["auc_over_clean"].mean()),
                    }
                )
    return lines


def in_words(row: Mapping[str, Any]) -> list[str]:
    """What a row says of its aftermath, for the terminal: a line per amount of poison, and per group and attack."""
    lines = []
    for one in json.loads(row.get("reinjection") or "[]"):
        back = "never" if one["steps_to_half"] is None else f"after {one['steps_to_half']} steps"
        lines.append(
            f"re-injection, {one['arm']} at rate {one['lr']:g}: ASR {one['asr'][0]:.4f} -> {one['asr'][-1]:.4f} in "
            f"{one['steps'][-1]} steps, 0.5 {back}, mean {one['area']:.4f}"
        )
    for one in json.loads(row.get("retuning") or "[]"):
        lines.append(
            f"retuning, {one['poisoned']} poisoned of {one['images']} images, draw {one['draw']}: "
            f"O-ASR {one['o_asr']:.4f}, P-ASR {one['p_asr']:.4f}"
        )
    for one in json.loads(row.get("connectivity") or "[]"):
        lines.append(
            f"way back, {one['statistics']} statistics: ASR {one['asr'][0]:.4f} -> {one['asr'][-1]:.4f}, half of it "
            f"back at {one['share_half']:g} of the way, barrier {one['barrier']:.4f}, accuracy at least "
            f"{one['accuracy_lowest']:.4f}"
        )
    for one in json.loads(row.get("membership") or "[]"):
        lines.append(
            f"membership of {one['group']} images, {one['attack']}: AUC {one['auc']:.4f}, balanced accuracy "
            f"{one['balanced_accuracy']:.4f}, gap {one['gap']:.4f} ({one['images']} members)"
        )
    return lines


def chance(runs: pd.DataFrame) -> float:
    """How far from 0.5 the AUC of a guess lies with 95 % probability: the rank-sum statistic, n against n images.

    Of one run, for runs share their images: what is a guess on one of them is the same guess on the next.
    """
    n = float(runs["images"].min())
    return 1.96 * math.sqrt((2 * n + 1) / (12 * n * n))


def _steps(values: pd.Series[Any]) -> str:
    reached = values.dropna()
    if not len(reached):
        return "never"
    text = f"{float(reached.median()):g}"
    return text if len(reached) == len(values) else f"{text} ({len(reached)} of {len(values)} runs)"


def _signed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:+.3f}"
