"""What a paper claims, as the file beside this one states it: values, places, conditions, its own contradictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from study.spec.load import load_spec
from study.spec.methods import without_method
from study.spec.yaml_io import SpecError, read_yaml_mapping
from trainables.defenses.base import DEFENSES

CLAIMS_FILE = Path(__file__).with_name("sha2022.yaml")
# What a claim is about, in columns of the ledger and in words.
MEASURES = {"asr": "ASR", "clean_accuracy": "clean accuracy", "asr_before": "ASR before"}
Measure = Literal["asr", "clean_accuracy", "asr_before"]
PASSES = "passes"
# Conditions of a run as they stand in a sentence, in the order in which a reader wants to know of them; those with an
# empty word name themselves.
CONDITIONS = {
    "dataset": "",
    "training_images": "training images",
    "model": "",
    "width": "width",
    "image_size": "image size",
    "scenario": "scenario",
    "clean_fraction": "clean fraction",
    "clean_source": "clean source",
    "label_noise": "label noise",
    "residual_poison": "residual poison",
    "poison_rate": "poison rate",
    "recipe": "victims' recipe",
    "attack_settings": "settings of the attack",
    PASSES: "passes over the clean set",
}
# A setting that is as the attacker trained: of fine-tuning at the rate of the attacker's own training.
AS_VICTIM = "victim"
ROUNDING = 1e-9
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Part):
    """What the paper says of one measure: a ``value``, or bounds."""

    value: float | None = None
    above: float | None = None
    below: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Expected:
        bounds = (self.above, self.below, self.at_least, self.at_most)
        if (self.value is None) == all(bound is None for bound in bounds):
            raise ValueError("give a value or bounds, one of them")
        return self

    @property
    def span(self) -> tuple[float, float]:
        """Least and largest that the bounds allow, or come nearest to."""
        low = [bound for bound in (self.above, self.at_least) if bound is not None]
        high = [bound for bound in (self.below, self.at_most) if bound is not None]
        return max(low, default=-math.inf), min(high, default=math.inf)

    def within_bounds(self, value: float) -> bool:
        """Whether ``value`` keeps all bounds that there are."""
        return (
            (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


class Span(_Part):
    """A condition that is a range: from ``low`` to ``high``, both included.

    ``near``: where in the range the paper looks, of passes alone. A repair may go on after that: then the point of its
    curve that is nearest to ``near``, and in the range, stands for the run.
    """

    low: float = Field(alias="from")
    high: float = Field(alias="to")
    near: float | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the range."""
        return self.low <= value <= self.high


Conditions = Mapping[str, tuple[Any, ...] | Span | None]


class Repair(_Part):
    """A defense with those of its settings that a claim states; of a list of values each will do."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Other(_Part):
    """How the second run of a difference differs from the first."""

    conditions: dict[str, tuple[Any, ...] | Span | None] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class Claim(_Part):
    """One claim.

    Args:
        says, place, seen: what, where it stands, and where we read it.
        attacks, datasets: every pair of them is a place at which the claim is judged.
        holds_in: at how many of these places it must hold: ``all``, ``almost all`` (the share that `Tolerance` has),
            ``most`` (more than half), ``any``.
        conditions: over those of the paper; None: it does not matter here.
        essential: conditions that a check at a smaller scale may not change either.
        under: ``schedule``: the defense is what the readings are readings of.
        repair: or it is this one. Neither: the claim is about the victims.
        settings: of the schedule, which the claim states.
        minus: the claim is about a difference: the value less that of the same run with these changes.
        expect: what each measure must be.
        unjudged: why it cannot be judged at all.
        caveats: keys of the paper's caveats that hold for our runs.
    """

    id: str
    says: str
    place: str
    seen: str = "supplement"
    attacks: tuple[str, ...]
    datasets: tuple[str, ...]
    holds_in: Literal["all", "almost all", "most", "any"] = "all"
    conditions: dict[str, tuple[Any, ...] | Span | None] = Field(default_factory=dict)
    essential: tuple[str, ...] = ()
    under: Literal["schedule"] | None = None
    repair: Repair | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    minus: Other | None = None
    expect: dict[Measure, Expected] = Field(default_factory=dict)
    unjudged: str | None = None
    caveats: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_judged(self) -> Claim:
        if (self.unjudged is None) != bool(self.expect):
            raise ValueError("a claim has something to expect, or says why it is unjudged")
        if self.under is not None and self.repair is not None:
            raise ValueError("under and repair exclude each other")
        of_difference = self.minus is not None and self.expect.get("asr")
        if of_difference and of_difference.value is not None:
            raise ValueError("a difference of ASR has no side: give bounds")
        return self


class Contradiction(_Part):
    """Where the paper speaks against itself, which claims that touches, and what follows here."""

    says: str
    so: str
    claims: tuple[str, ...] = ()


class Tolerance(_Part):
    """When a run meets a claim, and how many must.

    Args:
        asr_side: an ASR meets another one that lies on the same side of this; at most so much is "removed".
        clean_accuracy: largest difference of an accuracy.
        asr_before: largest difference of a victim's ASR.
        seeds: fewest attack seeds.
        share: least share of attack seeds that meet it.
        almost_all: least share of places at which a claim about almost all of them holds.
    """

    asr_side: Share
    clean_accuracy: Share
    asr_before: Share
    seeds: Annotated[int, Field(ge=1)]
    share: Share
    almost_all: Share

    def places_needed(self, claim: Claim) -> int:
        """At how many of its places a claim must hold."""
        places = len(claim.attacks) * len(claim.datasets)
        return {
            "all": places,
            "almost all": math.ceil(self.almost_all * places - ROUNDING),
            "most": places // 2 + 1,
            "any": 1,
        }[claim.holds_in]


class Readings(_Part):
    """Which recipe's repairs are the readings of the schedule, and under which a claim must fail to be refuted."""

    recipe: str
    needed: tuple[str, ...]


class Source(_Part):
    """The paper: its key in our references, and what people call it."""

    key: str
    title: str


class Paper(_Part):
    """A paper's claims."""

    paper: Source
    tolerance: Tolerance
    readings: Readings
    conditions: dict[str, tuple[Any, ...] | Span | None]
    training_images: dict[str, int]
    claims: tuple[Claim, ...]
    caveats: dict[str, str] = Field(default_factory=dict)
    contradictions: tuple[Contradiction, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Paper:
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) < len(ids):
            raise ValueError("two claims have one id")
        named = {name for item in self.contradictions for name in item.claims}
        caveats = {name for claim in self.claims for name in claim.caveats}
        for missing in sorted((named - set(ids)) | (caveats - set(self.caveats))):
            raise ValueError(f"{missing} is named, but there is none")
        parts = [self.conditions, *(claim.conditions for claim in self.claims)]
        parts += [claim.minus.conditions for claim in self.claims if claim.minus is not None]
        for unknown in sorted({name for part in parts for name in part} - set(CONDITIONS)):
            raise ValueError(f"unknown condition {unknown}; known: {', '.join(CONDITIONS)}")
        for name, wanted in [item for part in parts for item in part.items()]:
            if not isinstance(wanted, Span) or wanted.near is None:
                continue
            if name != PASSES:
                raise ValueError(f"near is of {PASSES} alone, for curves tell nothing else; {name} has it")
            if not wanted.holds(wanted.near):
                raise ValueError(f"near {wanted.near:g} is not within {wanted.low:g} to {wanted.high:g}")
        return self

    def conditions_of(self, claim: Claim, other: Other | None = None) -> Conditions:
        """All conditions of a claim, or of the second run of its difference."""
        return {**self.conditions, **claim.conditions, **({} if other is None else other.conditions)}


@dataclasses.dataclass(frozen=True)
class Reading:
    """One reading of the schedule: the defense and the settings that it states, under a name."""

    name: str
    method: str
    stated: Mapping[str, Any]

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of the defense under this reading, with those that a claim states over them."""
        return dataclasses.asdict(DEFENSES.create(self.method, {**self.stated, **changes}))


def read_paper(path: Path = CLAIMS_FILE) -> Paper:
    """The claims in a file.

    Raises:
        SpecError: it is not as described here.
    """
    try:
        return Paper.model_validate(read_yaml_mapping(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_readings(paper: Paper) -> dict[str, Reading]:
    """The readings of the schedule by name, from the recipe that the paper's file names.

    Raises:
        SpecError: the recipe lacks a reading that is needed.
    """
    spec = load_spec(paper.readings.recipe)
    found: dict[str, Reading] = {}
    method = None
    for name in paper.readings.needed:
        if name not in spec.defense:
            raise SpecError(f"recipe {paper.readings.recipe} has no repair {name}, a reading that the claims need")
        method = method or spec.method(name)
    for name, given in spec.defense.items():
        if name in spec.baselines and name != method and spec.method(name) == method:
            found[name] = Reading(name, spec.method(name), without_method(given))
    return found
