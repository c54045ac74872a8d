"""Claims beside our runs as people read them: for the terminal, as Markdown for the manual, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.claims.judge import NOT_COMPARABLE, NOT_REPRODUCED, REFUTED, REPRODUCED, Judgement, Measured, Place
from study.claims.paper import MEASURES, PASSES, Claim, Expected, Paper, Reading, Span
from study.claims.runs import in_words
from study.report.markdown import markdown_table

VERDICTS = (REPRODUCED, NOT_REPRODUCED, REFUTED, NOT_COMPARABLE)
NO_VERDICT = "A check at a smaller scale is a direction, never a reproduction"


def as_text(
    paper: Paper,
    readings: Mapping[str, Reading],
    judged: Sequence[Judgement],
    width: int,
    stand_ins: Mapping[str, str] | None = None,
) -> str:
    """Every claim as a paragraph of lines that are at most ``width`` characters long.

    Args:
        stand_ins: data sets that the user says are the paper's, see `runs.read_runs`.
    """
    parts = [_filled(f"{paper.paper.title}: {_summary(judged)}. {_rule(paper)}{_assumed(stand_ins)}", width)]
    for one in judged:
        lines = [f"{one.claim.id}: {verdict_in_words(one)}", f"  {one.claim.says} ({_source(one.claim)})"]
        lines = [_filled(line, width, indent=2) for line in lines]
        lines += [_filled(f"  {name:<10} {text}", width, indent=13) for name, text in _told(paper, one)]
        parts.append("\n".join(lines))
    parts.append("The paper against itself:")
    parts += [_filled(f"- {text}", width, indent=2) for text in _contradictions(paper)]
    parts.append("Readings of the schedule:")
    parts += [_filled(f"- {name}: {text}", width, indent=2) for name, text in _readings(readings)]
    return "\n\n".join(parts)


def as_markdown(
    paper: Paper,
    readings: Mapping[str, Reading],
    judged: Sequence[Judgement],
    stand_ins: Mapping[str, str] | None = None,
) -> str:
    """The same as tables for the manual."""
    rows = []
    for one in judged:
        told = dict(_told(paper, one))
        notes = [f"*{key}*: {told[key]}" for key in ("needs", "why", "ours", "note") if key in told]
        claim = f"**{one.claim.id}** {one.claim.says} ({_source(one.claim)})"
        rows.append((claim, verdict_in_words(one), "<br>".join(notes)))
    directions = [
        (f"**{one.claim.id}**: {_expected(one.claim, item.measures)}", item.task, item.readings, item.met, item.values)
        for one in judged
        for item in _directions(one.claim, one.directions)
    ]
    return "\n\n".join(
        [
            f"{_summary(judged)}. {_rule(paper)}{_assumed(stand_ins)}",
            markdown_table(("claim", "verdict", "because"), rows),
            *_smaller(directions),
            "## The paper against itself",
            "\n".join(f"- {text}" for text in _contradictions(paper)),
            "## Readings of the schedule",
            f"Each is a repair of the recipe `{paper.readings.recipe}`: what it states beside the defaults.",
            markdown_table(("reading", "settings"), _readings(readings)),
        ]
    )


def as_json(
    paper: Paper,
    readings: Mapping[str, Reading],
    judged: Sequence[Judgement],
    studies: Sequence[str],
    stand_ins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The same, whole, as an object of JSON."""
    return {
        "paper": paper.paper.model_dump(),
        "studies": list(studies),
        "same_data": dict(stand_ins or {}),
        "tolerance": paper.tolerance.model_dump(),
        "readings": {name: dict(one.stated) for name, one in readings.items()},
        "claims": [
            {
                **one.claim.model_dump(mode="json", exclude_defaults=True, by_alias=True),
                "verdict": one.verdict,
                "under": list(one.under),
                "why": one.why,
                "places": [_place_json(place) for place in one.places],
                "directions": [_measured_json(item) for item in one.directions],
            }
            for one in judged
        ],
        "contradictions": [item.model_dump(mode="json") for item in paper.contradictions],
    }


def verdict_in_words(one: Judgement) -> str:
    """The verdict with the readings that it rests on."""
    if not one.under:
        return one.verdict
    what = "under readings" if one.claim.under == "schedule" else "with victims trained by"
    return f"{one.verdict} {what} {', '.join(one.under)}"


# ------------------------------------------------------------------------------------------------------------ sentences


def _summary(judged: Sequence[Judgement]) -> str:
    count = {name: sum(one.verdict == name for one in judged) for name in VERDICTS}
    return f"{len(judged)} claims: " + ", ".join(f"{number} {name}" for name, number in count.items())


def _rule(paper: Paper) -> str:
    rule = paper.tolerance
    return (
        f"A run meets a value where its ASR lies on the same side of {rule.asr_side:g} and its clean accuracy within "
        f"{rule.clean_accuracy:g}, its victim's ASR within "
        f"{rule.asr_before:g}. A claim is reproduced where {100 * rule.share:.0f} % of at least {rule.seeds} "
        f"attack seeds meet it under one reading, and refuted where they do under none of those needed. {NO_VERDICT}."
    )


def _assumed(stand_ins: Mapping[str, str] | None) -> str:
    return "".join(f" {ours} is taken for {papers}, as --same-data says." for ours, papers in (stand_ins or {}).items())


def _source(claim: Claim) -> str:
    return claim.place if claim.seen == "supplement" else f"{claim.place}; seen in: {claim.seen}"


def _told(paper: Paper, one: Judgement) -> list[tuple[str, str]]:
    """What is said under a claim, each line under its name."""
    claim = one.claim
    told = []
    if claim.expect:
        told.append(("needs", _expected(claim) + _at_places(paper, claim)))
    if one.why:
        told.append(("why", one.why))
    single = len(one.places) == 1
    numbers = [
        ("" if single else f"{place.attack} on {place.dataset}, {place.verdict}: ") + _numbers(claim, place)
        for place in one.places
        if place.measured
    ]
    if numbers:
        told.append(("ours", "; ".join(numbers)))
    if one.directions:
        told.append(("direction", "; ".join(map(str, _directions(claim, one.directions)))))
    if any(place.measured for place in one.places):
        told += [("note", paper.caveats[key]) for key in claim.caveats]
    return told


def _expected(claim: Claim, measures: Collection[str] = MEASURES) -> str:
    passes = claim.conditions.get(PASSES)
    near = passes.near if isinstance(passes, Span) else None
    on_the_way = "" if near is None else f" after about {near:g} pass{'' if near == 1 else 'es'} (end or curve)"
    bounds = [f"{_measure(claim, name)} {_bounds(one)}" for name, one in claim.expect.items() if name in measures]
    return ", ".join(bounds) + on_the_way


def _at_places(paper: Paper, claim: Claim) -> str:
    """At how many attacks with data sets; nothing where there is one alone."""
    places = len(claim.attacks) * len(claim.datasets)
    if places == 1:
        return ""
    return f", at {paper.tolerance.places_needed(claim)} or more of {places} places (attack and data set)"


def _smaller(directions: Sequence[tuple[str, ...]]) -> list[str]:
    if not directions:
        return []
    return [
        "## At a smaller scale",
        "The same questions asked of smaller models and other images: how many runs lie on the claim's side. "
        "A range is that of several readings' means.",
        markdown_table(("the paper", "attack and task", "reading", "as claimed", "measured"), directions),
    ]


def _measure(claim: Claim, name: str) -> str:
    return f"difference of {MEASURES[name]}" if claim.minus is not None else MEASURES[name]


def _bounds(one: Expected) -> str:
    if one.value is not None:
        return in_words(one.value)
    words = {"above": one.above, "below": one.below, "at least": one.at_least, "at most": one.at_most}
    return " and ".join(f"{word} {in_words(bound)}" for word, bound in words.items() if bound is not None)


def _numbers(claim: Claim, place: Place) -> str:
    """The numbers at one place, and the readings that are still to be run there."""
    found = [
        f"{_reading(claim, item)}: {_values(claim, item)}, met by {item.seeds_met} of {item.seeds} attack seeds "
        f"({item.runs_met} of {item.runs} runs)"
        for item in place.measured
    ]
    return ", ".join(found) + (f"; not run: {', '.join(place.missing)}" if place.missing else "")


def _reading(claim: Claim, item: Measured) -> str:
    if claim.under == "schedule":
        return f"{item.reading}, victims trained by {item.recipe}"
    return f"victims trained by {item.reading}"


@dataclass(frozen=True)
class _Direction:
    """What the readings that agree at one attack and task found.

    Args:
        task: attack, data set, model and what was held.
        readings: of the schedule, where the claim is about it; or which of several settings, where any will do.
        met: how many of their runs are as claimed.
        measures: what was judged, for an accuracy alone means nothing at another scale.
        values: of these: a mean with its interval, or from the least to the most of several means.
    """

    task: str
    readings: str
    met: str
    measures: tuple[str, ...]
    values: str

    def __str__(self) -> str:
        reading = f" under {self.readings}" if self.readings else ""
        return f"{self.task}: as claimed in {self.met}{reading} ({self.values})"


def _directions(claim: Claim, items: Sequence[Measured]) -> list[_Direction]:
    """By attack and task; those readings together of which all runs are as claimed, and those of which none is."""
    groups: dict[tuple[str, object], list[Measured]] = {}
    for item in items:
        mixed = 0 < item.runs_met < item.runs
        outcome = item.reading if mixed or claim.under != "schedule" else item.runs_met > 0
        groups.setdefault((f"{item.attack} on {item.where}", outcome), []).append(item)
    return [
        _Direction(
            task,
            ", ".join(dict.fromkeys(item.reading for item in each if item.reading != item.recipe)),
            f"{sum(item.runs_met for item in each)} of {sum(item.runs for item in each)} runs",
            tuple(each[0].estimates),
            _values(claim, each[0]) if len(each) == 1 else _ranges(claim, each),
        )
        for (task, _), each in groups.items()
    ]


def _ranges(claim: Claim, items: Sequence[Measured]) -> str:
    means = {name: [item.estimates[name].value for item in items] for name in items[0].estimates}
    return ", ".join(f"{_measure(claim, name)} {min(of):.3f} to {max(of):.3f}" for name, of in means.items())


def _values(claim: Claim, item: Measured) -> str:
    return ", ".join(f"{_measure(claim, name)} {one.in_words(3)}" for name, one in item.estimates.items())


def _contradictions(paper: Paper) -> Iterable[str]:
    for item in paper.contradictions:
        touched = f" ({', '.join(item.claims)})" if item.claims else ""
        yield f"{item.says[0].upper()}{item.says[1:]}{touched}: {item.so}."


def _readings(readings: Mapping[str, Reading]) -> list[tuple[str, str]]:
    return [
        (
            name,
            ", ".join(f"{key} {in_words(value)}" for key, value in one.stated.items())
            or f"the defaults of {one.method}",
        )
        for name, one in readings.items()
    ]


# ---------------------------------------------------------------------------------------------------------------- forms


def _filled(text: str, width: int, indent: int = 0) -> str:
    return textwrap.fill(text, width, subsequent_indent=" " * indent, drop_whitespace=True)


def _place_json(place: Place) -> dict[str, Any]:
    return {
        "attack": place.attack,
        "dataset": place.dataset,
        "verdict": place.verdict,
        "measured": [_measured_json(item) for item in place.measured],
        "missing": list(place.missing),
        "differs": list(place.differs),
    }


def _measured_json(item: Measured) -> dict[str, Any]:
    values = {
        name: {"mean": one.value, "low": one.low, "high": one.high, "attackers": one.attackers}
        for name, one in item.estimates.items()
    }
    return {**{key: value for key, value in vars(item).items() if key != "estimates"}, "values": values} | {
        "studies": list(item.studies)
    }
