"""StudySpec: what a study is; unknown keys are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from search_spaces import space as search_spaces
from study.spec.aftermath import AftermathPart
from study.spec.combinations import check_sweep, combinations_of, with_values
from study.spec.methods import is_published, method_of, published_settings, typed_settings, without_method
from study.spec.over_attacks import MEAN, parse_rule
from study.spec.part import FolderOrUrl, Part
from study.spec.parts import CurveSpec, PluginPart, Resources, ScenarioSpec, VictimPart
from study.spec.plugins import load_plugins
from study.spec.resolved import Resolved, ResolvedAttack, ResolvedBaseline, ResolvedSearch
from study.spec.samplers import check_conditions
from study.spec.search import SearchSpec
from study.spec.seeds import LARGEST_SEED
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
from trainables.training.execution import chosen_execution
from trainables.training.loop import Precision
from trainables.training.recipes import RECIPES, TrainingRecipe
from trainables.victims.victim import CLEAN_SOURCES

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
# A study folder may be continued under other values of these.
MAY_CHANGE = (
    *("plugins", "download", "data_root", "store", "resources", "search.trials", "search.storage", "tracking"),
    *("victim.require_implanted", "keep", "set_apart"),
)
SUM_SLACK = 1e-9  # shares such as 0.7 and 0.3 are no exact numbers


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class StudySpec(Part):
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
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])
    defense_seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])
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
    store: FolderOrUrl | None = None
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
        if self.search.racing is not None:
            self._check_racing()
        self.resolve()
        if self.scenario.type == "same-label" and self.clean_source != "overlap":
            raise ValueError(
                f"clean_source {self.clean_source} does not fit scenario same-label, where the user's images are never "
                "the attacker's; leave it out"
            )
        if self.label_noise + self.residual_poison > 1 + SUM_SLACK:
            raise ValueError(
                f"label_noise {self.label_noise:g} and residual_poison {self.residual_poison:g} are shares of a "
                "defender's images, and no image has both: their sum must be at most 1"
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

    def _check_racing(self) -> None:
        """Refuse a race in which nothing can be dropped (SpecError)."""
        if not self.defenses:
            raise SpecError("search.racing: there is no search; name a defense under defenses, or leave it out")
        if len(self.seeds) * len(self.defense_seeds) * (len(self.attacks) if self.search.per == "all" else 1) == 1:
            raise SpecError(
                "search.racing: a setting is scored on one cell, so there is nothing to save; score it on several with "
                "more seeds or defense_seeds, or with search.per: all over several attacks, or leave racing out"
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
        given = {key: getattr(self.victim, key) for key in ("epochs", "batch_size", "lr", "weight_decay")}
        changes = {key: value for key, value in given.items() if value is not None}
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
        searched = [key for key in space.decides if key in fixed]
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
        variant = self.search.space.get(label, "default")
        space = search_spaces.get_space(self.method(label), variant, self.dataset)
        if space.conditions:
            check_conditions(self.search.sampler, self.search.startup, f"search.space.{label}: {variant}")
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
