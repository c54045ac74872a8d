"""A claim beside our runs: which of them it can be compared with, and whether they bear it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from study.claims.candidates import Candidate, find_candidates, readings_of, recipe_of, ways
from study.claims.estimates import Pair, estimates
from study.claims.paper import Claim, Expected, Paper, Reading, Tolerance
from study.claims.runs import Run, difference, distinct, in_words
from study.results.intervals import Estimate
from study.results.outcomes import NO_BACKDOOR

Verdict = Literal["reproduced", "not reproduced", "refuted", "not comparable"]
REPRODUCED: Verdict = "reproduced"
NOT_REPRODUCED: Verdict = "not reproduced"
REFUTED: Verdict = "refuted"
NOT_COMPARABLE: Verdict = "not comparable"
# What a check at a smaller scale may change, unless the claim is about it.
SCALE = frozenset(
    {
        *("dataset", "training_images", "model", "width", "image_size", "recipe", "poison_rate"),
        *("clean_fraction", "clean_source", "passes"),
    }
)
SOUND = ("ok", "abstained")
ROUNDING = 1e-9


@dataclass(frozen=True)
class Measured:
    """What the runs of one reading at one place found.

    Args:
        reading: of the schedule; of a claim about something else, how the attacker trained, see `candidates.ways`.
        recipe: how the attacker trained.
        where: data set, model and width, clean fraction.
        estimates: mean and interval of every measure.
        seeds, runs: how many attack seeds, and how many runs of them all.
        seeds_met, runs_met: how many of these meet the claim.
        studies: that the runs are from.
    """

    reading: str
    recipe: str
    where: str
    attack: str
    estimates: Mapping[str, Estimate]
    seeds: int
    seeds_met: int
    runs: int
    runs_met: int
    studies: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """The verdict at one place: an attack on a data set.

    ``missing``: readings that have not been run here. ``differs``: in what the nearest runs differ from the paper's,
    where none can be compared, or that chance decides between them; empty where there is no run at all.
    """

    attack: str
    dataset: str
    verdict: Verdict
    measured: tuple[Measured, ...] = ()
    missing: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict.

    Args:
        under: the readings that the verdict rests on.
        why: the reason where it is not comparable.
        places: the verdict of each.
        directions: the same question at a smaller scale, which is no verdict.
    """

    claim: Claim
    verdict: Verdict
    under: tuple[str, ...] = ()
    why: str = ""
    places: tuple[Place, ...] = ()
    directions: tuple[Measured, ...] = ()


def judge(paper: Paper, readings: Mapping[str, Reading], runs: Sequence[Run]) -> list[Judgement]:
    """Every claim of the paper, in its order, beside these runs."""
    own = distinct(runs)
    return [_judge_claim(paper, readings, claim, own) for claim in paper.claims]


def _judge_claim(paper: Paper, readings: Mapping[str, Reading], claim: Claim, runs: Sequence[Run]) -> Judgement:
    if claim.unjudged is not None:
        return Judgement(claim, NOT_COMPARABLE, why=claim.unjudged)
    candidates = find_candidates(paper, readings, claim, runs)
    needed = _needed(paper, readings, claim)
    places = tuple(
        _judge_place(paper, claim, needed, attack, dataset, [one for one in candidates if one.run.attack == attack])
        for attack, dataset in product(claim.attacks, claim.datasets)
    )
    verdict = _together(paper.tolerance.places_needed(claim), places)
    decisive = [one for one in places if one.verdict != NOT_COMPARABLE]
    under = {
        item.reading: None
        for place in decisive
        for item in place.measured
        if verdict != REPRODUCED or _bears_out(paper, claim, item)
    }
    return Judgement(
        claim,
        verdict,
        under=tuple(under) if verdict != NOT_COMPARABLE else (),
        why=_why(claim, places) if verdict == NOT_COMPARABLE else "",
        places=places,
        directions=_directions(paper.tolerance, claim, candidates),
    )


def _needed(paper: Paper, readings: Mapping[str, Reading], claim: Claim) -> tuple[str, ...]:
    """The readings under all of which a claim must fail to be refuted."""
    if claim.under == "schedule":
        usable = {one.name for one in readings_of(readings, claim)}
        return tuple(name for name in paper.readings.needed if name in usable)
    recipes = paper.conditions_of(claim).get("recipe")
    stated = {} if claim.repair is None else {**claim.repair.settings, **claim.settings}
    return tuple(way for name in recipes for way in ways(str(name), stated)) if isinstance(recipes, tuple) else ()


# ------------------------------------------------------------------------------------------------------------ verdicts


def _judge_place(
    paper: Paper, claim: Claim, needed: Sequence[str], attack: str, dataset: str, candidates: Sequence[Candidate]
) -> Place:
    exact = [one for one in candidates if not one.differs and one.run.conditions["dataset"] == dataset]
    measured = _measure(paper.tolerance, claim, exact)
    enough = tuple(one for one in measured if one.seeds >= paper.tolerance.seeds)
    if not enough:
        few = max((one.seeds for one in measured), default=0)
        differs = (
            (f"{few} attack seeds, not {paper.tolerance.seeds} or more",) if few else _nearest(candidates, dataset)
        )
        return Place(attack, dataset, NOT_COMPARABLE, differs=differs)
    missing = tuple(name for name in needed if name not in {one.reading for one in enough})
    if any(_bears_out(paper, claim, one) for one in enough):
        return Place(attack, dataset, REPRODUCED, enough, missing)
    if not all(_told(claim, one, within=False) for one in enough):
        differs = ("95 % intervals over the attackers reach over the claim's bound: more attackers would tell",)
        return Place(attack, dataset, NOT_COMPARABLE, enough, missing, differs)
    return Place(attack, dataset, NOT_REPRODUCED if missing else REFUTED, enough, missing)


def _bears_out(paper: Paper, claim: Claim, measured: Measured) -> bool:
    """Whether the runs of a reading meet the claim, and not by chance."""
    return measured.seeds_met >= paper.tolerance.share * measured.seeds and _told(claim, measured, within=True)


def _told(claim: Claim, measured: Measured, *, within: bool) -> bool:
    """Whether chance does not decide of a difference: its interval lies within (or outside) the claim's bounds.

    Without that, a difference of nothing at all would lie below 0 in two of three attackers half of the time. Of other
    claims each run is held against the paper's value, whose tolerance is no matter of chance.
    """
    if claim.minus is None:
        return True
    for name, expected in claim.expect.items():
        one = measured.estimates[name]
        if expected.value is not None:
            continue
        least, most = expected.span
        told = expected.within_bounds(one.low) and expected.within_bounds(one.high)
        if not (told if within else one.high < least or one.low > most):
            return False
    return True


def _nearest(candidates: Sequence[Candidate], dataset: str) -> tuple[str, ...]:
    """What differs in those runs that differ in the fewest conditions; of equals those of a reading, then the most."""
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for one in candidates:
        ours = str(one.run.conditions["dataset"])
        differs = tuple(item.text for item in one.differs if item.condition != "dataset")
        if ours != dataset:
            differs = (difference("dataset", ours, (dataset,)).text, *differs)
        groups.setdefault(differs, []).append(one)
    if not groups:
        return ()
    return min(groups, key=lambda differs: (len(differs), not groups[differs][0].reading, -len(groups[differs])))


def _together(needed: int, places: Sequence[Place]) -> Verdict:
    """The verdict of all places together, at so many of which the claim must hold.

    Open, so not comparable, as long as those not measured could turn it.
    """
    count = {name: sum(one.verdict == name for one in places) for name in (REPRODUCED, NOT_REPRODUCED, REFUTED)}
    against = count[NOT_REPRODUCED] + count[REFUTED]
    if count[REPRODUCED] >= needed:
        return REPRODUCED
    if len(places) - against >= needed:
        return NOT_COMPARABLE
    return REFUTED if len(places) - count[REFUTED] < needed else NOT_REPRODUCED


def _why(claim: Claim, places: Sequence[Place]) -> str:
    """The reason of a claim that is not comparable: what differs at the place that comes nearest."""
    open_places = [one for one in places if one.verdict == NOT_COMPARABLE]
    told = [one for one in open_places if one.differs]
    judged = len(places) - len(open_places)
    begin = f"{judged} of {len(places)} places measured; of the others: " if judged else ""
    if not told:
        return f"{begin}no run of {' or '.join(dict.fromkeys(one.attack for one in open_places))} under this repair"
    nearest = min(told, key=lambda one: len(one.differs))
    return begin + "; ".join(nearest.differs)


# ------------------------------------------------------------------------------------------------------------- numbers


def _measure(tolerance: Tolerance, claim: Claim, candidates: Sequence[Candidate]) -> tuple[Measured, ...]:
    """The numbers of each reading; runs of other attacks, data sets, models or conditions stay apart."""
    groups: dict[tuple[Any, ...], list[Candidate]] = {}
    for one in candidates:
        key = (one.reading, recipe_of(one.run), _where(one.run), one.run.attack, one.differs)
        groups.setdefault(key, []).append(one)
    found = []
    for (reading, recipe, where, attack, _), members in groups.items():
        met: dict[int, list[bool]] = {}
        for one in members:
            met.setdefault(one.run.seed, []).append(_meets(tolerance, claim, one.pair))
        found.append(
            Measured(
                reading=reading,
                recipe=recipe,
                where=where,
                attack=attack,
                estimates=estimates([one.pair for one in members], tuple(claim.expect)),
                seeds=len(met),
                # A seed's runs are those of its defense seeds: more than half must meet the claim.
                seeds_met=sum(2 * sum(each) > len(each) for each in met.values()),
                runs=len(members),
                runs_met=sum(map(sum, met.values())),
                studies=tuple(dict.fromkeys(one.run.study for one in members)),
            )
        )
    return tuple(found)


def _meets(tolerance: Tolerance, claim: Claim, pair: Pair) -> bool:
    """Whether one run, or one difference, is as the claim says."""
    of_repair = claim.repair is not None or claim.under is not None
    if of_repair and any(run.outcome not in (*SOUND, NO_BACKDOOR) for run in pair.runs):
        return False  # a ruined model bears nothing out
    return all(meets(tolerance, measure, expected, pair.value(measure)) for measure, expected in claim.expect.items())


def meets(tolerance: Tolerance, measure: str, expected: Expected, value: float) -> bool:
    """Whether a measured value is what a paper says, within its tolerance."""
    if expected.value is None:
        return expected.within_bounds(value)
    if measure != "asr":
        largest = tolerance.clean_accuracy if measure == "clean_accuracy" else tolerance.asr_before
        return abs(value - expected.value) <= largest + ROUNDING
    return (value <= tolerance.asr_side) == (expected.value <= tolerance.asr_side)


def _where(run: Run) -> str:
    width, share = run.conditions["width"], run.conditions["clean_fraction"]
    model = f"{run.conditions['model']} of width {width}" if width else run.conditions["model"]
    rate = run.conditions["poison_rate"]
    held = "".join(
        f", {name} {in_words(value)}" for name, value in (("clean fraction", share), ("poison rate", rate)) if value
    )
    return f"{run.conditions['dataset']}, {model}{held}"


def _directions(tolerance: Tolerance, claim: Claim, candidates: Sequence[Candidate]) -> tuple[Measured, ...]:
    """The claim's question at a smaller scale: of ASR and of differences, for an accuracy alone means nothing there."""
    about = {name: one for name, one in claim.expect.items() if name != "clean_accuracy" or claim.minus is not None}
    if not about:
        return ()
    allowed = SCALE - set(claim.essential)
    small = [one for one in candidates if one.differs and all(item.condition in allowed for item in one.differs)]
    return _measure(tolerance, claim.model_copy(update={"expect": about}), small)
