"""The runs that a claim is about, each with all in which it is not what the paper ran."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from study.claims.estimates import Pair
from study.claims.paper import AS_VICTIM, CONDITIONS, Claim, Conditions, Other, Paper, Reading
from study.claims.runs import (
    Difference,
    Run,
    as_looked_at,
    choices,
    difference,
    differences,
    has_setting,
    in_words,
    setting_differences,
)
from study.results.outcomes import NO_BACKDOOR


@dataclass(frozen=True)
class Candidate:
    """A run, or two whose difference counts, under the name of its reading, with all that differs from the claim."""

    reading: str
    pair: Pair
    differs: tuple[Difference, ...]

    @property
    def run(self) -> Run:
        return self.pair.run


def find_candidates(
    paper: Paper, readings: Mapping[str, Reading], claim: Claim, runs: Sequence[Run]
) -> list[Candidate]:
    """The runs of the claim's attacks and repair, each with what differs; of a difference, pairs of runs."""
    attacked = [run for run in runs if run.attack in claim.attacks and _counts(claim, run)]
    first = _named(readings, claim, attacked, paper.conditions_of(claim), None)
    if claim.minus is None:
        return [Candidate(name, Pair(run), _at(run, paper, claim, differs)) for name, run, differs in first]
    changed = _named(readings, claim, attacked, paper.conditions_of(claim, claim.minus), claim.minus)
    found = []
    for name, run, differs in first:
        # The other run repairs the same victim with the same seed, and is as near to its own conditions.
        others = [
            other
            for other_name, other, other_differs in changed
            if name == other_name
            and (run.victim, run.defense_seed) == (other.victim, other.defense_seed)
            and {one.condition for one in other_differs} == {one.condition for one in differs}
        ]
        alone = () if others else (Difference("minus", f"no run with {_in_words(claim.minus)} beside it"),)
        found.append(Candidate(name, Pair(run, *others[:1]), _at(run, paper, claim, differs) + alone))
    return found


def _in_words(other: Other) -> str:
    changes = {CONDITIONS.get(key, key): value for key, value in {**other.conditions, **other.settings}.items()}
    return ", ".join(
        f"{key} {' or '.join(map(in_words, value)) if isinstance(value, tuple) else in_words(value)}"
        for key, value in changes.items()
    )


def _counts(claim: Claim, run: Run) -> bool:
    """Whether a run says anything of the claim: it was measured, and on a backdoor unless that is the question."""
    measured = all(name in run.values for name in claim.expect)
    return measured and (run.outcome != NO_BACKDOOR or "asr_before" in claim.expect)


def _named(
    readings: Mapping[str, Reading], claim: Claim, runs: Sequence[Run], conditions: Conditions, other: Other | None
) -> list[tuple[str, Run, tuple[Difference, ...]]]:
    """Runs of the claim's repair under the name of their reading, with the conditions and settings that differ."""
    changes = {**claim.settings, **({} if other is None else other.settings)}
    runs = [as_looked_at(run, conditions) for run in runs]
    if claim.under == "schedule":
        settings = {one.name: one.settings(changes) for one in readings_of(readings, claim)}
        methods = {one.method for one in readings.values()}
        return [
            (name, run, differences(run, conditions) + differs)
            for run in runs
            if run.method in methods
            for name, differs in _reading_of(run, settings, changes)
        ]
    if claim.repair is None:  # of the victims: each once
        victims = list({run.victim: run for run in reversed(runs)}.values())[::-1]
        return [(recipe_of(run), run, differences(run, conditions)) for run in victims]
    stated = {**claim.repair.settings, **changes}
    return [
        (name, run, differences(run, conditions) + setting_differences(run, stated))
        for run in runs
        if run.method == claim.repair.method
        for name in _way_of(run, stated)
    ]


def ways(recipe: str, stated: Mapping[str, Any]) -> list[str]:
    """How victims were trained and, of settings for which several values will do, repaired: ``sha (lr 0.0003)``."""
    named = [
        [f"the victims' {key}" if one == AS_VICTIM else f"{key} {in_words(one)}" for one in choices(wanted)]
        for key, wanted in stated.items()
        if isinstance(wanted, list)
    ]
    return [f"{recipe} ({', '.join(each)})" if each else recipe for each in product(*named)]


def _way_of(run: Run, stated: Mapping[str, Any]) -> list[str]:
    """Those of `ways` that the run goes; of none, how its victim was trained."""
    own = {
        key: [one for one in wanted if has_setting(run, key, one)]
        for key, wanted in stated.items()
        if isinstance(wanted, list)
    }
    return ways(recipe_of(run), own) or [recipe_of(run)]


def readings_of(readings: Mapping[str, Reading], claim: Claim) -> list[Reading]:
    """Those that a claim can be judged under: not one that has a value of its own for what the claim states."""
    return [one for one in readings.values() if not set(claim.settings) & set(one.stated)]


def _reading_of(
    run: Run, settings: Mapping[str, Mapping[str, Any]], stated: Collection[str]
) -> list[tuple[str, tuple[Difference, ...]]]:
    """The readings that a run follows, but for what the claim states itself; of none, that it follows none."""
    found = []
    for name, wanted in settings.items():
        differs = {key: run.settings.get(key) for key in wanted if run.settings.get(key) != wanted[key]}
        if set(differs) <= set(stated):
            found.append((name, tuple(difference(key, ours, (wanted[key],)) for key, ours in differs.items())))
    return found or [("", (Difference("settings", f"settings of none of the readings {', '.join(settings)}"),))]


def recipe_of(run: Run) -> str:
    """How the run's victim was trained."""
    return str(run.conditions["recipe"])


def _at(run: Run, paper: Paper, claim: Claim, differs: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """What differs, with the data set where it is none of the claim's, or not the whole of one."""
    dataset = run.conditions["dataset"]
    if dataset not in claim.datasets:
        return (difference("dataset", dataset, claim.datasets), *differs)
    whole, images = paper.training_images.get(str(dataset)), run.conditions["training_images"]
    if whole is not None and images != whole:
        return (difference("training_images", images, (whole,)), *differs)
    return differs
