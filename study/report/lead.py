"""What was found, in sentences: of the whole study and of one attack. Every number is from the report half.

A sentence here sets a tuned setting against the published setting of the same defense, on the same models. None says
that one defense beats another: for that, steps, compute, batches, seeds and knowledge would have to be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report.figures.style import FEW_SEARCHES
from study.report.html import escape, plural
from study.results.in_words import models_of, movement_text, settings_text
from study.results.outcomes import REMOVED_ASR, outcome_of
from study.results.rows import ALL_ATTACKS
from study.results.settings import on_victims
from study.results.verdicts import (
    BETTER,
    EQUAL,
    KNEE,
    LESS_ASR,
    MORE_ACCURACY,
    NO_PICK,
    NO_RESULT,
    NO_WORSE,
    NOT_PUBLISHED,
    PUBLISHED_FAILED,
    SAME,
    TUNED,
    WORSE,
    Verdict,
    is_clear,
)
from study.spec.over_attacks import MEAN, parse_rule

EXAMPLES = 5  # pairs that a sentence spells out
FEW_SENTENCES = 6  # on single defenses; more are folded
FEW_POINTS = 0.02  # clean accuracy lost that the sentence on removed backdoors calls little, fraction
_REST = {
    LESS_ASR: "the tuned setting has less ASR for less clean accuracy",
    MORE_ACCURACY: "the tuned setting has more clean accuracy for more ASR",
    EQUAL: "the tuned setting comes to the same numbers",
    SAME: "the search picked the published setting itself",
    WORSE: "the tuned setting, chosen on the other half, is better in neither",
    NO_PICK: "no setting on the front loses at most 1 point of clean accuracy",
    PUBLISHED_FAILED: "the published setting collapsed, diverged or failed, so there is nothing to compare with",
    NOT_PUBLISHED: "the published setting was not run",
    NO_RESULT: "no setting has a result",
}


def study_lead(pairs: Sequence[tuple[str, Verdict]], rows: pd.DataFrame) -> str:
    """The lead of one data set and model.

    Args:
        pairs: (attack, verdict) of every search; attack ``all`` where it was over all attacks at once.
        rows: ledger rows of this data set and model.
    """
    says = []
    if pairs:
        says += _gains(pairs, rows)
        rest = [(text, [pair for pair in pairs if pair[1].verdict == name]) for name, text in _REST.items()]
        words = [f"<li>{text}: {len(found)} – {_names(found)}</li>" for text, found in rest if found]
        if words:
            says.append(f"{'Elsewhere' if says else 'Tuned against published'}:<ul>{''.join(words)}</ul>")
    else:
        says.append("Nothing was searched: every defense ran once on every backdoored model, with one setting.")
    says.append(_removed(rows))
    says.append(_trust(rows))
    return '<ul class="lead">' + "".join(f"<li>{sentence}</li>" for sentence in says if sentence) + "</ul>"


def attack_lead(settings: pd.DataFrame, found: Sequence[Verdict], rows: pd.DataFrame, target: str = "") -> str:
    """The lead of one attack: where tuning gained in both first, then the model before repair, then each defense.

    Args:
        settings: rows of ``settings.aggregate`` of this attack.
        found: ``verdicts.verdicts`` of it.
        rows: ledger rows of it.
        target: the attacker's class in words.
    """
    measured = on_victims(settings)
    if not len(measured):
        return ""
    first = measured.iloc[0]
    attack = str(first["attack"])
    says = _gains([(attack, one) for one in found], rows, name_attack=False)
    whose = f"the attacker's class, {escape(target)}" if target else "the attacker's class"
    says.append(
        f"<b>Before repair</b> {percent(first['asr_before_report'])} of triggered images go to {whose}, and "
        f"{percent(first['clean_accuracy_before_report'])} of clean images are classified right."
    )
    each = _each_defense(settings, measured, found)
    few = len(each) <= FEW_SENTENCES
    listed = "".join(f"<li>{sentence}</li>" for sentence in says + (each if few else []))
    out = f'<ul class="lead">{listed}</ul>'
    if not few:
        lines = "".join(f"<li>{sentence}</li>" for sentence in each)
        out += f"<details><summary>Each defense in a sentence</summary><ul>{lines}</ul></details>"
    return out


def outcome_text(one: pd.Series[Any]) -> str:
    """What a setting came to: its two rates, or the condition that makes them worthless."""
    if one["status"] == "diverged":
        return "training diverged"
    if one["collapsed"]:
        return f"the model collapsed (clean accuracy {percent(one['clean_accuracy_report'])})"
    where = "" if one["cells"] == 1 else " on at least one model"
    unchanged = f"it abstained{where}: " if one["status"] == "abstained" else ""
    unchanged += f"it {words}: " if (words := movement_text(one)) else ""
    models = f" ({words})" if (words := models_of(one)) else ""
    return (
        f"{unchanged}ASR {percent(one['asr_report'])} at clean accuracy {percent(one['clean_accuracy_report'])}{models}"
    )


def pick_words(label: str) -> str:
    """What a pick was allowed, for a sentence in brackets."""
    if label == KNEE:
        return "the knee of the front"
    if label == "max_der":
        return "the greatest DER"
    points = label.removeprefix("drop_")
    return f"least ASR at {points} {plural('point', 1 if points == '1' else 2)} lost at most"


def _gains(pairs: Sequence[tuple[str, Verdict]], rows: pd.DataFrame, name_attack: bool = True) -> list[str]:
    """Where a tuned setting is better in both, and where it is as good in one and better in the other."""
    says = []
    total = f"{len(pairs)} {plural('pair', len(pairs))} of attack and defense" if name_attack else ""
    total = total or f"{len(pairs)} searched {plural('defense', len(pairs))}"
    for wanted, what in (
        (BETTER, "both less ASR and more clean accuracy than"),
        (NO_WORSE, "the same ASR or the same clean accuracy, and a better value of the other, than"),
    ):
        own = [pair for pair in pairs if pair[1].verdict == wanted]
        if not own:
            continue
        shown = "; ".join(_example(attack, one, name_attack) for attack, one in own[:EXAMPLES])
        shown += f"; and {len(own) - EXAMPLES} more" if len(own) > EXAMPLES else ""
        says.append(f"<b>In {len(own)} of {total} a tuned setting has {what} the published setting</b>: {shown}.")
        says[-1] += f" {_clear(sum(is_clear(one, rows, len(pairs)) for _, one in own), len(own))}"
    return says


def _clear(clear: int, total: int) -> str:
    """How many of the gains are larger than what the luck of attackers and test images allows for."""
    chance = "may be chance: settings were chosen and measured on the same models"
    chance += " (<code>search.confirm</code> takes fresh ones)"
    larger = "larger than chance allows, by its 95 % interval over the attackers"
    if clear == total:
        return f"{'The difference' if total == 1 else 'Each difference'} is {larger}."
    if clear:
        return f"In {clear} of the {total} the difference is {larger}; the others {chance}."
    return f"That {chance}."


def _example(attack: str, one: Verdict, name_attack: bool) -> str:
    assert one.published is not None
    assert one.pick is not None
    where = f" on {_attack_words(attack, one)}" if name_attack else ""
    change = ", ".join(
        f"{name} {percent(one.published[column])} → {percent(one.pick[column])}"
        for name, column in (("ASR", "asr_report"), ("clean accuracy", "clean_accuracy_report"))
    )
    which = "" if one.label == TUNED else f"; this is the pick with {escape(pick_words(one.label))}"
    unchanged = "; the published setting abstained" if one.published["status"] == "abstained" else ""
    models = f"; {words}" if (words := models_of(one.pick)) else ""
    return f"{escape(one.defense)}{escape(where)} ({change}{which}{unchanged}{models})"


def _names(pairs: Sequence[tuple[str, Verdict]]) -> str:
    """Defenses by attack: ``abl, ft (badnets); nad (blended)``; with the pick where it is not the one called tuned."""
    by_attack: dict[str, list[str]] = {}
    for attack, one in pairs:
        which = f", the pick with {pick_words(one.label)}" if one.label != TUNED else ""
        by_attack.setdefault(_attack_words(attack, one), []).append(one.defense + which)
    return "; ".join(f"{escape(', '.join(names))} ({escape(attack)})" for attack, names in by_attack.items())


def _attack_words(attack: str, one: Verdict) -> str:
    rule = parse_rule(one.aggregate)
    return f"all attacks ({rule if rule == MEAN else rule.in_words})" if attack == ALL_ATTACKS else attack


def _removed(rows: pd.DataFrame) -> str:
    """How often a backdoor was removed without any search."""
    searched = rows["role"].fillna("search") == "search"
    own = rows[searched & rows["published"].eq(True)] if searched.any() else rows[_is_repair(rows)]
    outcome = outcome_of(rows).loc[own.index]
    own = own[~outcome.isin(["no_backdoor"])]
    if not len(own):
        return ""
    ok = own[(outcome.loc[own.index] == "ok") & (own["asr_report"].astype("float64") <= REMOVED_ASR)]
    lost = ok["clean_accuracy_before_report"].astype("float64") - ok["clean_accuracy_report"].astype("float64")
    cheap = int((lost <= FEW_POINTS + 1e-9).sum())
    which = "with published settings" if searched.any() else "of a defense on a backdoored model"
    text = f"In {len(ok)} of {len(own)} {plural('run', len(own))} {which}, ASR falls to {REMOVED_ASR:.0%} or less"
    return text + (
        f", in {cheap or 'none'} of them for at most {100 * FEW_POINTS:g} points of clean accuracy." if len(ok) else "."
    )


def _is_repair(rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows["role"] == "baseline") & (rows["defense"] != "none")


def _trust(rows: pd.DataFrame) -> str:
    """Seeds and test images behind the numbers, and what they cannot carry."""
    seeds, defenders = sorted(rows["seed"].dropna().unique()), rows["defense_seed"].dropna().nunique()
    if len(seeds) == 1:
        runs = "one run" if defenders < 2 else f"a mean over {defenders} defense seeds"
        text = (
            f"<b>One seed</b> ({seeds[0]}): each number is {runs} on one backdoored model, and another seed can turn "
            "a result around."
        )
    else:
        text = f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))})."
    counts = [rows[f"n_{kind}_report"].dropna() for kind in ("clean", "triggered")]
    if all(map(len, counts)):
        clean, triggered = (
            str(one.min()) if one.min() == one.max() else f"{one.min()} to {one.max()}" for one in counts
        )
        least = min(int(one.min()) for one in counts)
        text += (
            f" Measured on {clean} clean and {triggered} triggered test images per model (the report half), so one "
            f"image is up to {100 / least:.1f} points and small differences are chance."
        )
    return (
        text + " These sentences compare settings of one method; they do not say that one method is better than "
        "another."
    )


def _each_defense(settings: pd.DataFrame, measured: pd.DataFrame, found: Sequence[Verdict]) -> list[str]:
    says = []
    for _, row in measured[(measured["role"] == "baseline") & (measured["defense"] != "none")].iterrows():
        says.append(f"<b>{escape(row['defense_label'])}</b> (baseline): {outcome_text(row)}.")
    searched = settings[settings["role"] == "search"]
    for one in found:
        group = searched[searched["defense_label"] == one.defense]
        says.append(f"<b>{escape(one.defense)}</b>: {_one_defense(one, group, brief=len(found) > FEW_SEARCHES)}.")
    return says


def _one_defense(one: Verdict, group: pd.DataFrame, brief: bool) -> str:
    if not group["asr_report"].notna().any():
        count = len(group)
        return "no result, " + ("its only setting failed" if count == 1 else f"all of its {count} settings failed")
    parts = []
    if one.published is not None and not pd.isna(one.published["asr_report"]):
        parts.append(f"with its published setting {outcome_text(one.published)}")
    elif one.published is not None:
        parts.append("its published setting failed")
    if one.verdict == SAME:
        return f"{parts[0]}, and the search found nothing better that loses at most 1 point of accuracy"
    if one.tuned is None:
        parts.append("no setting lost at most 1 point of accuracy in the search")
    elif one.published is not None and one.tuned["trial"] == one.published["trial"]:
        parts.append("the search picks the same if it may lose 1 point of accuracy")
    else:
        parts.append(f"what the search picks if it may lose 1 point of accuracy: {outcome_text(one.tuned)}")
        parts[-1] += "" if brief else f" ({escape(settings_text(one.tuned))})"
    if one.pick is not None and one.label != TUNED:
        parts.append(f"the pick with {escape(pick_words(one.label))}: {outcome_text(one.pick)}")
        parts[-1] += "" if brief else f" ({escape(settings_text(one.pick))})"
    return "; ".join(parts)
