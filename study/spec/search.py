"""How settings are searched: the part ``search`` of a spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from study.spec.over_attacks import MEAN, parse_rule
from study.spec.part import FolderOrUrl, Part
from study.spec.samplers import SAMPLERS, check_constraints, check_sampler
from trainables.storage.remote import Place

# Settings of a search where a spec says nothing: with equal trials, and, as a guard against runaways, with a budget.
TRIALS, MOST_TRIALS = 32, 1000


class RacingSpec(Part):
    """Settings are dropped before all of their cells are measured, see `study.search.racing`.

    ``alpha``: the chance that a search drops any setting that belongs on its front. ``margin``: a fraction; a setting
    that is better than a rival by less in one rate, and worse in the other, counts as dominated. ``block``: cells of a
    setting that run at a time.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    block: Annotated[int, Field(ge=1)] = 1


class SearchSpec(Part):
    """How settings are searched: ``trials`` settings per search, the published point first.

    With ``published: false`` a search does not begin with the published point, and its space may leave it out.

    ``space`` names a variant of a defense's search space; ``ranges`` narrows or widens single parameters of it,
    ``ranges.DEFENSE.PARAMETER: [low, high]``, or a list of choices for a categorical one. With ``budget_epochs`` all
    searches get equal compute instead of equal trials: each may spend so many E per cell (one E is a training epoch on
    the attacker's whole set). A setting that would overspend is not started, and a search ends when none fits any more.
    The published point is shown whatever it costs; where it alone costs more than the budget, the budget is for the
    others. ``trials`` is then a guard against runaways, 1,000 unless given, and the report says where it held.
    ``history``: finished trials that the sampler (TPE) learns from, the newest and those on the front; 1,000 unless
    given, so that an ask costs the same after ten thousand. ``startup``: how the first ``startup_trials`` are drawn.
    ``warm_start``: folders of studies whose fronts are tried first, in the place of as many of those.
    ``accuracy_floor``: settings that give up more clean accuracy than this (a fraction, of the search half) are worth
    less to the sampler than any other.
    ``aggregate``, with ``per: all``: what of the attacks counts, their ``mean``, the ``worst``, or the mean of the
    worst share, ``cvar:0.25``; search, progress, report and ``superft front`` keep to it. ``repeats``: how often each
    search is made, each time with other draws of the sampler: the first is the study's, the others show how much of its
    hypervolume was luck. ``confirm``: on how many fresh attack seeds the settings that a search chose are run again
    once it is over. ``racing``: settings that are dominated beyond doubt are dropped; a number is its ``alpha``.
    """

    trials: Annotated[int, Field(ge=1)] = TRIALS
    sampler: str = "tpe"
    per: Literal["attack", "all"] = "attack"
    startup_trials: Annotated[int, Field(ge=1)] = 10
    published: bool = True
    storage: str = "journal"
    budget_epochs: Annotated[float, Field(gt=0)] | None = None
    history: Annotated[int, Field(ge=100)] | None = None
    startup: Literal["random", "qmc"] = "random"
    warm_start: list[FolderOrUrl] = Field(default_factory=list)
    accuracy_floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    aggregate: str = "mean"
    repeats: Annotated[int, Field(ge=1)] = 1
    confirm: Annotated[int, Field(ge=1)] | None = None
    racing: RacingSpec | None = None
    space: dict[str, str] = Field(default_factory=dict)
    ranges: dict[str, dict[str, list[Any]]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """The number of settings that goes with the rule, written out so that the stored spec is complete."""
        if not isinstance(data, Mapping) or "trials" in data:
            return data
        return {**data, "trials": TRIALS if data.get("budget_epochs") is None else MOST_TRIALS}

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        check_sampler(value)
        return value

    @field_validator("history")
    @classmethod
    def _history_is_for_those_that_learn_from_it(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "sampler" in info.data and not SAMPLERS.get(info.data["sampler"]).history:
            raise ValueError(f"has no meaning with sampler {info.data['sampler']}; leave it out")
        return value

    @field_validator("accuracy_floor")
    @classmethod
    def _floor_is_for_those_that_keep_it(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and "sampler" in info.data:
            check_constraints(info.data["sampler"])
        return value

    @field_validator("warm_start")
    @classmethod
    def _no_study_twice(cls, value: list[Place]) -> list[Place]:
        for place in value:
            if value.count(place) > 1:
                raise ValueError(f"names {str(place)!r} more than once")
        return value

    @field_validator("aggregate")
    @classmethod
    def _known_rule(cls, value: str, info: ValidationInfo) -> str:
        rule = parse_rule(value)
        if rule != MEAN and info.data.get("per") == "attack":
            raise ValueError(
                f"{rule} is over the attacks of a setting, which per: attack scores one by one; add per: all"
            )
        return str(rule)

    @field_validator("repeats")
    @classmethod
    def _repeats_have_no_budget(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("budget_epochs") is not None:
            raise ValueError(
                f"{value} searches beside search.budget_epochs would not cost the same, since each finds work ready "
                "that an earlier one made; leave one of the two out"
            )
        return value

    @field_validator("racing", mode="before")
    @classmethod
    def _alpha_alone(cls, value: Any) -> Any:
        return {"alpha": value} if isinstance(value, int | float) else value

    @field_validator("racing")
    @classmethod
    def _racing_is_over_means(cls, value: RacingSpec | None, info: ValidationInfo) -> RacingSpec | None:
        if value is None:
            return value
        if info.data.get("budget_epochs") is not None:
            raise ValueError(
                "what dropped settings leave of search.budget_epochs would depend on which of them end first; give "
                "search.trials instead of the budget, or leave racing out"
            )
        if (rule := info.data.get("aggregate", str(MEAN))) != str(MEAN):
            raise ValueError(f"bounds a mean over cells, not search.aggregate: {rule}; leave one of the two out")
        return value

    @field_validator("storage")
    @classmethod
    def _journal_or_url(cls, value: str) -> str:
        if value != "journal" and "://" not in value:
            raise ValueError(f"must be journal or a database URL such as postgresql://..., got {value!r}")
        return value
