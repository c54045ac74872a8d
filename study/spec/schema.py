"""StudySpec: what a study is; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from search_spaces import space as search_spaces
from study.spec.aftermath import AftermathPart
from study.spec.combinations import check_sweep, combinations_of, with_values
from study.spec.methods import is_published, method_of, published_settings, typed_settings, without_method
from study.spec.over_attacks import MEAN, parse_rule
from study.spec.part import Part as _Part
from study.spec.plugins import load_plugins
from study.spec.resolved import Resolved, ResolvedAttack, ResolvedBaseline, ResolvedSearch
from study.spec.samplers import SAMPLERS, check_constraints, check_sampler
from study.spec.trackers import TRACKERS
from study.spec.yaml_io import SpecError, dump_yaml, without_password
from trainables.attacks.base import ATTACKS
from trainables.data.load import DataSource
from trainables.data.sources.base import SOURCES
from trainables.data.sources.folders import FOLDER
from trainables.defender_data import is_folder
from trainables.defenses.base import DEFENSES
from trainables.evaluation.aftermath.settings import FROM_SCRATCH, UNDEFENDED
from trainables.models.build import MODELS
from trainables.registry import nearest
from trainables.scenarios import ScenarioName
from trainables.storage.remote import Place, as_place
from trainables.training.execution import chosen_execution
from trainables.training.loop import Precision
from trainables.training.recipes import RECIPES, TrainingRecipe
from trainables.victims import CLEAN_SOURCES

# What a study gets where neither the spec nor the data set says anything.
DEFAULT_RECIPE = "bb"
DEFAULT_MODEL = "preact_resnet18"
# What an encoder scenario takes by default.
ENCODER_MODEL = "encoder_resnet18"
# What the user's data set is to the attacker -> how victims are made for that. Half of the data for each side makes a
# standalone victim like any other.
VICTIM_SCENARIOS: dict[str, ScenarioName] = {
    "standalone": "standalone",
    "same-label": "standalone",
    "new-head": "new_head",
    "encoder": "encoder",
}
# Settings of a search where a spec says nothing: with equal trials, and, as a guard against runaways, with a budget.
TRIALS, MOST_TRIALS = 32, 1000
# A study folder may be continued under other values of these.
MAY_CHANGE = (
    *("plugins", "download", "data_root", "store", "resources", "search.trials", "search.storage", "tracking"),
    *("victim.require_implanted", "keep", "set_apart"),
)


def _place(value: Any) -> Any:
    return as_place(value) if isinstance(value, str) else value


class SearchSpec(_Part):
    """How settings are searched: ``trials`` settings per search, the published point first.

    With ``published: false`` a search does not begin with the published point, and its space may leave it out.

    ``space`` names a variant of a defense's search space; ``ranges`` narrows or widens single parameters of it,
    ``ranges.DEFENSE.PARAMETER: [low, high]``, or a list of choices for a categorical one. With ``budget_epochs`` all
    searches get equal compute instead of equal trials: each may spend so many E per cell (one E is a training epoch on
    the attacker's whole set). A setting that would overspend is not started, and a search ends when none fits any more.
    The published point is shown whatever it costs; where it alone costs more than the budget, the budget is for the
    others. ``trials`` is then a guard against runaways, 1,000 unless given, and the report says where it held.
    ``history``: finished trials that the sampler (TPE) learns from, the newest and those on the front; by default all,
    which is slow after some thousand. ``startup``: how the first ``startup_trials`` are drawn. ``warm_start``: folders
    of studies whose fronts are tried first, in the place of as many of those. ``accuracy_floor``: settings that give up
    more clean accuracy than this (a fraction, of the search half) are worth less to the sampler than any other.
    ``aggregate``, with ``per: all``: what of the attacks counts, their ``mean``, the ``worst``, or the mean of the
    worst share, ``cvar:0.25``; search, progress, report and ``superft front`` keep to it. ``repeats``: how often each
    search is made, each time with other draws of the sampler: the first is the study's, the others show how much of its
    hypervolume was luck. ``confirm``: on how many fresh attack seeds the settings that a search chose are run again
    once it is over.
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
    warm_start: list[Annotated[Place, BeforeValidator(_place)]] = Field(default_factory=list)
    accuracy_floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    aggregate: str = "mean"
    repeats: Annotated[int, Field(ge=1)] = 1
    confirm: Annotated[int, Field(ge=1)] | None = None
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

    @field_validator("storage")
    @classmethod
    def _journal_or_url(cls, value: str) -> str:
        if value != "journal" and "://" not in value:
            raise ValueError(f"must be journal or a database URL such as postgresql://..., got {value!r}")
        return value


class VictimPart(_Part):
    """How victims are made; keys given here go over the recipe's own.

    ``require_implanted``: what becomes of trials on a victim without a backdoor. ``stop``: the study ends before any
    trial. ``skip``: they are not run. ``run``: they run, and count in no front.
    """

    recipe: str | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    poison_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    require_implanted: Literal["stop", "skip", "run"] = "skip"

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str | None) -> str | None:
        if value is not None and value not in RECIPES:
            raise ValueError(f"unknown recipe {value!r}: {nearest(value, RECIPES)}")
        return value


class Resources(_Part):
    """What one trial takes. ``gpus_per_trial``: a fraction 1/k, a whole number, or ``auto``: measured for every kind.

    ``trial_seconds``: a trial that takes longer is cut and recorded as failed; none by default. Its data and victim are
    loaded within this time too.
    """

    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    trial_seconds: Annotated[float, Field(gt=0)] | None = None

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _one_over_k(cls, value: Any) -> Any:
        fits = value == "auto"
        if isinstance(value, str) and re.fullmatch(r"1/([1-9]\d?|100)", value):
            return 1 / int(value[2:])
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            fits = float(value).is_integer() or (value >= 0.01 and abs(value - 1 / round(1 / value)) < 1e-4)
        if not fits:
            raise ValueError(f"must be auto, 0, a whole number or 1/k (1/2, 0.25, ...), got {value!r}")
        return value


class ScenarioSpec(_Part):
    """What ``dataset``, the user's, is to the attacker (Sha et al., section 4).

    ``standalone``: the task that was attacked. ``same-label``: the same task, but half of every class belongs to the
    attacker and half to the user, who takes ``clean_fraction`` of his. ``new-head``: ``upstream`` was attacked, and the
    user puts a new head on the model. ``encoder``: an encoder was attacked that was trained on ``upstream``.
    ``head``: ``fresh``: defenders with clean data train a new head themselves; ``probe``: they get the one that was
    trained on the fixed model, as everybody without data does. ``controls``: run every baseline also on a clean model
    under the same trigger: what a new task does to a model by itself is no merit of a defense. ``clean_control``: the
    same in the scenarios without a new task, where it tells what a defense costs a model that has no backdoor;
    ``undefended``: the clean model is measured as it is, by the baseline ``none`` alone.
    """

    type: Literal["standalone", "same-label", "new-head", "encoder"] = "standalone"
    upstream: str | None = None
    head: Literal["fresh", "probe"] = "fresh"
    controls: bool = True
    clean_control: bool | Literal["undefended"] = False

    @model_validator(mode="after")
    def _upstream_where_there_is_one(self) -> ScenarioSpec:
        if self.has_upstream and self.upstream is None:
            raise ValueError(f"type {self.type} needs scenario.upstream, the data set of the attacker")
        if not self.has_upstream:
            for key in ("upstream", "head", "controls"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no meaning in type {self.type}; leave it out")
        elif self.clean_control:
            raise ValueError(f"clean_control has no meaning in type {self.type}, where controls says it; leave it out")
        return self

    @property
    def has_upstream(self) -> bool:
        """Whether the attacker had another data set than the user."""
        return self.type in ("new-head", "encoder")


class CurveSpec(_Part):
    """Rates along every repair, measured by the evaluator, which no defense sees.

    ``every``: ``epoch`` (a pass over the images that the defense trains on) or a number of optimiser steps; left out:
    a model is measured after its repair alone.
    """

    every: Literal["epoch"] | int | None = None

    @field_validator("every", mode="before")
    @classmethod
    def _epoch_or_steps(cls, value: Any) -> Any:
        if value not in ("epoch", None) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"must be epoch or a number of steps >= 1, got {value!r}")
        return value


class PluginPart(_Part):
    """A plug-in, as `trainables.plugins.load.Plugin` says it; in a spec of one's own its module or file is enough."""

    module: str
    name: str = ""
    version: str = ""
    source: str = ""
    path: str | None = None


class StudySpec(_Part):
    """A study. Settings of a method: ``attack.NAME.key``, ``defense.NAME.key``.

    One defense may stand in a study several times, under labels of its own: ``defense.LABEL.method`` names the
    registered defense, and the label stands in ``defenses`` or ``baselines`` in its place.

    ``sweep`` repeats the study over all combinations of values of some keys, see `study.spec.sweep`.

    ``seeds`` are the attackers' (poison, weights, training), ``defense_seeds`` the defenders' (which clean images they
    hold, and the draws of the repair); every defender meets every victim.

    ``keep``: whose repaired models stay in the store: those of the settings on a ``front``, of ``all`` trials, or of
    ``none``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)] = "study"
    dataset: str = "digits"
    image_size: Annotated[int, Field(ge=8)] | None = None
    flip: bool | None = None
    data_root: Path | None = None
    download: bool = False
    model: str = DEFAULT_MODEL
    width: Annotated[int, Field(ge=1)] | None = None
    attacks: Annotated[list[str], Field(min_length=1)]
    defenses: list[str] = Field(default_factory=list)
    baselines: list[str] = Field(default_factory=list)
    set_apart: list[str] = Field(default_factory=list)
    attack: dict[str, dict[str, Any]] = Field(default_factory=dict)
    defense: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(default_factory=lambda: [0])
    defense_seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0]
    )
    search: SearchSpec = SearchSpec()
    victim: VictimPart = VictimPart()
    scenario: ScenarioSpec = ScenarioSpec()
    clean_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    clean_source: str = "overlap"
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    residual_poison: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "auto"
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    curve: CurveSpec = CurveSpec()
    keep: Literal["front", "all", "none"] = "none"
    store: Annotated[Place, BeforeValidator(_place)] | None = None
    resources: Resources = Resources()
    tracking: list[str] = Field(default_factory=list)
    plugins: list[PluginPart] = Field(default_factory=list)
    aftermath: AftermathPart = AftermathPart()

    @field_validator("attacks", "defenses", "baselines", "set_apart", "seeds", "defense_seeds", "tracking")
    @classmethod
    def _no_repeats(cls, value: list[Any]) -> list[Any]:
        repeated = sorted({item for item in value if value.count(item) > 1})
        if repeated:
            raise ValueError(f"names {repeated[0]!r} more than once")
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        MODELS.get(value)
        return value

    @field_validator("tracking")
    @classmethod
    def _known_trackers(cls, value: list[str]) -> list[str]:
        for name in value:
            TRACKERS.get(name)
        return value

    @field_validator("clean_source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if value not in CLEAN_SOURCES and not is_folder(value):
            known = [*CLEAN_SOURCES, f"{FOLDER}PATH"]
            raise ValueError(f"unknown clean_source {value!r}: {nearest(value, known)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Defaults that depend on the data set, written out so that the stored spec is complete."""
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        scenario = filled.get("scenario")
        if isinstance(scenario, dict) and scenario.get("type") == "encoder":
            filled.setdefault("model", ENCODER_MODEL)
        if filled.get("sweep"):
            # The study itself stands for its first combination; defaults that may differ are each combination's own.
            sweep = check_sweep(filled["sweep"])
            filled = with_values(filled, combinations_of(sweep)[0])
            return filled | {"sweep": sweep, "plugins": load_plugins(filled)}
        named = filled.get("dataset", "digits")
        filled["plugins"] = load_plugins(filled)  # first: they bring names that are asked for below
        source = SOURCES.get(named) if isinstance(named, str) and named in SOURCES else None
        upstream = scenario.get("upstream") if isinstance(scenario, dict) else None
        if any(isinstance(name, str) and name.startswith(FOLDER) for name in (named, upstream)):
            filled["flip"] = True if filled.get("flip") is None else filled["flip"]
        model = filled.get("model", DEFAULT_MODEL)
        if filled.get("width") is None and isinstance(model, str) and model in MODELS and MODELS.get(model).is_wide:
            filled["width"] = (source and source.width) or MODELS.get(model).default_width
        victim = filled.get("victim")
        if victim is None or isinstance(victim, dict):
            filled["victim"] = {"recipe": (source and source.recipe) or DEFAULT_RECIPE} | {
                key: value for key, value in (victim or {}).items() if key != "recipe" or value is not None
            }
        return filled

    @model_validator(mode="after")
    def _flip_is_of_folders(self) -> StudySpec:
        named = [name for name in (self.dataset, self.scenario.upstream) if name is not None]
        if self.flip is not None and not any(name.startswith(FOLDER) for name in named):
            raise ValueError(
                f"flip is of {FOLDER}PATH alone, {' and '.join(named)} know by themselves whether they are mirrored; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _methods_exist(self) -> StudySpec:
        if not self.defenses and not self.baselines:
            raise ValueError("name at least one defense (searched) or baseline")
        for name in self.attacks:
            ATTACKS.get(name)
        for label in (*self.defenses, *self.baselines):
            self.method(label)
        run = (*self.defenses, *self.baselines)
        for label in self.set_apart:
            if label not in run:
                raise SpecError(
                    f"set_apart: {label!r} is neither a defense nor a baseline of this study: {nearest(label, run)}"
                )
        measured = {self.method(label) for label in self.baselines}
        if self.scenario.clean_control == "undefended" and UNDEFENDED not in measured:
            raise SpecError("scenario.clean_control: undefended needs the baseline none, which measures it; add it")
        for name in (*self.search.space, *self.search.ranges):
            self._space(name)
        for name in self.attack:
            self._attack(name)
        for name in self.defense:
            self._fixed(name)
        for name in {*self.defenses, *self.search.ranges}:
            given, key = self.search.ranges.get(name, {}), f"search.ranges.{name}"
            method, space = self.method(name), self._space(name)
            search_spaces.check_space(method, space, {**space.beside(method), **self._fixed(name)}, given, key)
        if self.search.repeats > 1:
            self._check_repeats()
        if self.keep == "front" and not self.defenses:
            raise SpecError("keep: front has no meaning without a search, which alone has one; all, or a defense more")
        if self.search.confirm is not None and not self.defenses:
            raise SpecError(
                "search.confirm: there is no search whose settings could be confirmed; name a defense under defenses, "
                "or leave it out"
            )
        if parse_rule(self.search.aggregate) != MEAN and len(self.attacks) == 1:
            raise SpecError(
                f"search.aggregate: {self.search.aggregate} has no meaning over one attack; name several attacks, or "
                "leave it out"
            )
        self.resolve()
        if self.scenario.type == "same-label" and self.clean_source != "overlap":
            raise ValueError(
                f"clean_source {self.clean_source} does not fit scenario same-label, where the user's images are never "
                "the attacker's; leave it out"
            )
        spoilt = is_folder(self.clean_source) or self.label_noise > 0 or self.residual_poison > 0
        if spoilt and self.aftermath.membership is not None:
            raise ValueError(
                "aftermath.membership asks who was among the task's own clean images: it goes with no label_noise, "
                f"residual_poison or clean_source {FOLDER}PATH; leave one out"
            )
        return self

    def _check_repeats(self) -> None:
        """Refuse repeats of what no sampler decides (SpecError)."""
        if not self.defenses:
            raise SpecError(
                "search.repeats: there is no search to repeat; name a defense under defenses, or leave it out"
            )
        for name in self.defenses:
            if (size := self._space(name).size) <= self.search.trials:
                raise SpecError(
                    f"search.repeats: the space of {name} holds {size:.0f} settings, and each search of "
                    f"{self.search.trials} tries all of them; fewer search.trials, or no repeats"
                )

    def resolve(self) -> Resolved:
        """The spec with every question answered: what `plan.jobs.make_plan` works from.

        Raises:
            SettingError, SpecError: a method, setting, space or range that does not exist or does not fit.
        """
        chosen_execution()  # no key of the spec, but refused as early
        scenario = self.scenario
        fraction, source, reserved = self.clean_fraction, self.clean_source, None
        if scenario.type == "same-label":
            fraction, source, reserved = 0.5 * self.clean_fraction, "heldout", 0.5
        elif source == "heldout":
            reserved = fraction
        return Resolved(
            data=self.source(self.dataset),
            upstream=None if scenario.upstream is None else self.source(scenario.upstream),
            attacks=tuple(self._attack(name) for name in self.attacks),
            baselines=tuple(self._baseline(name) for name in (*self.baselines, *self._read_against())),
            searches=tuple(self._search(name) for name in self.defenses),
            shared=self.search.per == "all",
            seeds=tuple(self.seeds),
            defense_seeds=tuple(self.defense_seeds),
            model=self.model,
            width=self.width,
            recipe=self._recipe(),
            precision=self.precision,
            reserved_fraction=reserved,
            scenario=scenario.type,
            victim_scenario=VICTIM_SCENARIOS[scenario.type],
            clean_fraction=fraction,
            clean_source=source,
            label_noise=self.label_noise,
            residual_poison=self.residual_poison,
            fresh_head=scenario.has_upstream and scenario.head == "fresh",
            controls=scenario.controls if scenario.has_upstream else scenario.clean_control,
            aftermath=self.aftermath.resolved(),
        )

    def _read_against(self) -> list[str]:
        """Baselines that an aftermath is read against and that the spec does not name."""
        there = {self.method(label) for label in self.baselines}
        if self.aftermath.resolved() is None:
            return []
        return [name for name in (UNDEFENDED, FROM_SCRATCH) if name not in there]

    def source(self, name: str) -> DataSource:
        """Where the images of a data set of this study come from."""
        flip = self.flip if name.startswith(FOLDER) else None
        return DataSource(name, self.image_size, self.data_root, self.download, flip)

    def _recipe(self) -> TrainingRecipe:
        """The named recipe with the spec's changes."""
        changes = {
            key: getattr(self.victim, key) for key in ("epochs", "batch_size", "lr") if getattr(self.victim, key)
        }
        return dataclasses.replace(RECIPES[self.victim.recipe or DEFAULT_RECIPE], **changes)

    def _attack(self, name: str) -> ResolvedAttack:
        cls = ATTACKS.get(name)
        given = dict(self.attack.get(name, {}))
        if self.victim.poison_rate is not None and "poison_rate" in {field.name for field in dataclasses.fields(cls)}:
            given.setdefault("poison_rate", self.victim.poison_rate)
        # The name of a class: its number is known once the data are, see `plan.targets`; until then no victim takes it.
        by_name = {key: given.pop(key) for key in ("target_label",) if isinstance(given.get(key), str)}
        return ResolvedAttack(name, typed_settings(ATTACKS, name, given) | by_name, cls.implants_backdoor)

    def method(self, label: str) -> str:
        """The registered defense that a label stands for (SettingError): itself where the spec names no other."""
        return method_of(label, self.defense.get(label, {}))

    def _baseline(self, label: str) -> ResolvedBaseline:
        method = self.method(label)
        settings = {**published_settings(method, self.dataset), **self._fixed(label)}
        return ResolvedBaseline(label, method, settings, is_published(method, settings, self.dataset))

    def _search(self, label: str) -> ResolvedSearch:
        space, fixed, name = self._space(label), self._fixed(label), label
        searched = [key for key in space.to_settings(space.paper_params()) if key in fixed]
        if searched:
            raise SpecError(
                f"defense.{name}.{searched[0]} is fixed by the spec but searched by its space; "
                f"drop it, or list {name} under baselines instead"
            )
        method = self.method(label)
        fixed = {**space.beside(method), **fixed}
        detector, rest = (DEFENSES.get(method).detects and space.split()) or (None, space)
        return ResolvedSearch(label, method, rest, fixed, detector)

    def _fixed(self, label: str) -> dict[str, Any]:
        """Settings that the spec fixes for a defense, coerced to their types (SettingError)."""
        return typed_settings(DEFENSES, self.method(label), without_method(self.defense.get(label, {})), label)

    def _space(self, label: str) -> search_spaces.Space:
        """The search space of a defense in this study (SettingError)."""
        space = search_spaces.get_space(self.method(label), self.search.space.get(label, "default"), self.dataset)
        return space.with_ranges(
            self.search.ranges.get(label, {}), f"search.ranges.{label}", published=self.search.published
        )

    def to_yaml(self) -> str:
        """The resolved spec, complete and readable again; a password in ``search.storage`` is left out of it."""
        values = self.model_dump(mode="json")
        values["search"]["storage"], _ = without_password(values["search"]["storage"])
        return dump_yaml(values)


def differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Keys under which two specs make different studies, each as ``key: old -> new``; those that may change left out.

    ``search.trials`` may grow (the study is extended) but not shrink below what is planned.
    """
    left, right = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    changed = []
    for key in sorted({*left, *right}):
        if left.get(key) == right.get(key) or any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE):
            continue
        changed.append(f"{key}: {left.get(key)!r} -> {right.get(key)!r}")
    if new.search.trials < old.search.trials:
        changed.append(f"search.trials: {old.search.trials} -> {new.search.trials} (may only grow)")
    return changed


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
