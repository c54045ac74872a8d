"""The result of a repair for people: what was measured, what warns, what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.foreign.progress import duration


def describe(report: Mapping[str, Any]) -> str:
    """A report of `repair_model`, in lines."""
    images, loss, moved = report["images"], report["loss"], report["displacement"]
    lines = [
        f"{report['defense']}: {report['status']}, on {images['train']} images ({images['validation']} for validation, "
        f"{images['held_out']} held out), {report['work']['steps']} steps in {report['seconds']:.1f} s on "
        f"{report['device']}",
        f"  clean accuracy   {_rate(report['clean_accuracy_before'])} -> {_rate(report['clean_accuracy_after'])}",
        f"                   {report['lost']} held-out images lost, {report['won']} won",
        f"  agreement        {_rate(report['agreement'])} with the old model",
        f"  displacement     {moved['distance']:.3g}, {moved['relative']:.2%} of the length of the weights",
    ]
    if loss["trained"]:
        lines.append(
            f"  training loss    {loss['first']:.3f} before the first step, {loss['highest']:.3f} at its highest, "
            f"{loss['last']:.3f} at the end (means of 5 steps)"
        )
    lines.append(f"  Neural Cleanse   {_flags(report['neural_cleanse'], images['classes'])}")
    if report["choice"] is not None:
        lines += [f"  {line}" for line in choice_lines(report["choice"])]
    lines += [f"  warning: {line}" for line in report["warnings"]]
    lines += [f"  not known: {line}" for line in report["unknown"]]
    return "\n".join(lines)


def choice_lines(choice: Mapping[str, Any]) -> list[str]:
    """How the settings were chosen, in lines: the rule and what it chose, why, the planted triggers, the cost."""
    tried = len({row["candidate"] for row in choice["tried"] if "candidate" in row})
    of = f" of {tried} that were tried" if tried else ""
    lines = [f"chosen by        {choice['rule']}: {choice['candidate'] or 'nothing'}{of}"]
    lines += [f"{'because' if place == 0 else '':16} {line}" for place, line in enumerate(choice["reasons"])]
    for place, one in enumerate(choice["planted"]):
        name = "planted ASR" if place == 0 else ""
        lines.append(
            f"{name:16} {one['kind']}: {_rate(one['asr_before'])} on its copy -> {_rate(one['asr_after'])} once that "
            "was repaired so"
        )
    if choice["work"]["steps"]:
        lines.append(
            f"choosing took    {choice['work']['steps']} steps in all; this call {duration(choice['seconds'])}"
        )
    return lines


def _rate(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['rate']:.4f} ({low:.3f} to {high:.3f}, {found['count']} of {found['of']})"


def _flags(flags: Mapping[str, Any], classes: list[str]) -> str:
    if not flags["ran"]:
        return (
            f"not asked; it would take up to {flags['times_the_repair']:g} times as long as the repair "
            "(--neural-cleanse)"
        )
    before, after = (
        ", ".join(classes[label] if label < len(classes) else str(label) for label in flags[when]["flagged_classes"])
        for when in ("before", "after")
    )
    return f"flags {before or 'no class'} before, {after or 'no class'} after"
