"""Spec -> the work: victims, baselines, searches, and their cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from search_spaces.space import Space, fingerprint, nearest_within
from study.plan.data import Data, data_of, one_of
from study.plan.targets import with_label_numbers
from study.spec.methods import is_published
from study.spec.resolved import ResolvedAttack, ResolvedBaseline, ResolvedSearch
from study.spec.schema import StudySpec
from study.spec.sweep import Combination, combinations
from trainables.aftermath import check_aftermath
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource
from trainables.defender_data import check_head, defender_counts
from trainables.defenses.base import DEFENSES, CleanData, Defense, PoisonedData
from trainables.evaluation.aftermath.settings import UNDEFENDED, Aftermath
from trainables.job import Cell, Job, Role
from trainables.models.build import build_model, check_output
from trainables.models.classifier import Classifier
from trainables.victims.spec import attacker_indices, check_victim

CONFIRM: Literal["confirm"] = "confirm"  # role of the trials on fresh seeds, and part of their ids
Key = tuple[str, int, str]  # attack, seed and combination: within a study they name a victim


@dataclass(frozen=True)
class Search:
    """One Optuna study: settings of one defense, each scored on every one of ``cells``.

    Args:
        label: attack (or ``all``) and the defense's label; before them, of a sweep, the combination.
        defense: registered name.
        cells: that a setting is run on.
        space: what Optuna searches.
        fixed: settings beside it that never change.
        detector: the space of the detector, which is tuned first, on what it finds alone; None: there is none, or it is
            searched like everything else.
        tuned: the detector's settings that were chosen so; None: not yet, the published ones stand for them.
        group: its attack, or ``all``.
        repeat: 0; of a search that is made again, the number of the repetition (1, 2, ...).
        fresh: cells on seeds that the study does not use; the settings that it chose are run on them once it is over.
    """

    label: str
    defense: str
    cells: tuple[Cell, ...]
    space: Space
    fixed: Mapping[str, Any]
    detector: Space | None = None
    tuned: Mapping[str, Any] | None = None
    group: str = ""
    repeat: int = 0
    fresh: tuple[Cell, ...] = ()

    @property
    def confirm_label(self) -> str:
        """Label of the trials on fresh seeds."""
        return f"{self.label}/{CONFIRM}"

    def confirm_id(self, trial: str) -> str:
        """Id of a setting on fresh seeds, whose id is ``trial`` in the search."""
        return f"{self.confirm_label}/{trial.removeprefix(f'{self.label}/')}"

    @property
    def role(self) -> Role:
        """Of its rows."""
        return "repeat" if self.repeat else "search"

    def trial_id(self, number: int) -> str:
        """Id of the setting that Optuna counts as ``number``."""
        return f"{self.label}/{number:04d}"

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The defense's settings for searched parameters, with the detector that was tuned."""
        detector = self.published_detector() if self.tuned is None else self.tuned
        return {**self.fixed, **detector, **self.space.to_settings(params)}

    def published_detector(self) -> dict[str, Any]:
        """The detector's settings as published; none where it is not tuned first."""
        return {} if self.detector is None else self.detector.to_settings(self.detector.paper_params())

    def published_settings(self) -> dict[str, Any]:
        """The published point (trial 0), the detector's settings included, whatever was chosen for it."""
        return {**self.fixed, **self.published_detector(), **self.space.to_settings(self.paper_params())}

    def priced_settings(self) -> dict[str, Any]:
        """What a setting is taken to cost before one was measured: the published point's, put into the searched ranges.

        They hold it wherever it is searched at all, see ``search.published``.
        """
        ranges = self.space.distributions
        params = {name: nearest_within(value, ranges[name]) for name, value in self.paper_params().items()}
        return {**self.published_settings(), **self.space.to_settings(params)}

    def decided(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Of a row's settings those that this search decides or fixes."""
        return {key: settings[key] for key in (*self.fixed, *self._by_detector, *self.space.decides) if key in settings}

    def start_named(self, settings: Mapping[str, Any]) -> str | None:
        """Which of the space's further starting points settings are; None: none of them."""
        if not self._starts:
            return None
        return self._starts.get(fingerprint(self.decided(settings)))

    def is_published(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings are the published point on the search's data set."""
        return is_published(self.defense, settings, self.cells[0].data.name)

    @cached_property
    def _starts(self) -> dict[str, str]:
        return {fingerprint(self.settings(params)): name for name, params in self.space.starting_points().items()}

    @property
    def _by_detector(self) -> tuple[str, ...]:
        return () if self.detector is None else self.detector.decides

    @property
    def begins_beside(self) -> bool:
        """Whether the published point lies outside what is searched, since another detector was chosen."""
        return fingerprint(self.published_settings()) != fingerprint(self.settings(self.paper_params()))

    def paper_params(self) -> dict[str, Any]:
        """The published point as searched parameters; of trial 0, unless `begins_beside`."""
        return self.space.paper_params()


@dataclass(frozen=True)
class Plan:
    """All the work of a study. ``aftermath``: what is asked of the models that searched settings repair."""

    spec: StudySpec
    baselines: tuple[Job, ...]
    searches: tuple[Search, ...]
    aftermath: Aftermath | None = None

    @property
    def total_jobs(self) -> int:
        """Ray trials of the finished study, i.e. rows of its ledger."""
        return self.jobs_by_label().total()

    @property
    def cells(self) -> list[Cell]:
        """All of them, each once: the baselines' first."""
        searched = (cell for search in self.searches for cell in (*search.cells, *search.fresh))
        return list(dict.fromkeys([*(job.cell for job in self.baselines), *searched]))

    def jobs_by_label(self) -> Counter[str]:
        """How many trials each search and each baseline has in the finished study.

        How many settings will be confirmed is not known: at most all of a search.
        """
        count = Counter(job.label for job in self.baselines)
        count += Counter({one.label: len(one.cells) * self.most_settings(one) for one in self.searches})
        return count + Counter({one.confirm_label: len(one.fresh) * self.most_settings(one) for one in self.searches})

    def most_settings(self, search: Search) -> int:
        """Settings of a search, unless its budget ends it earlier: as many as asked for, or as its space holds."""
        beside = self.spec.search.published and search.begins_beside
        return int(min(self.spec.search.trials, search.space.size + beside))

    def with_detectors(self, tuned: Mapping[str, Mapping[str, Any]]) -> Plan:
        """The same with the detectors' settings that were chosen, by the label of their search."""
        return dataclasses.replace(
            self,
            searches=tuple(
                one if one.detector is None else dataclasses.replace(one, tuned=tuned.get(one.label, one.tuned))
                for one in self.searches
            ),
        )

    def untuned(self) -> list[Search]:
        """The searches whose detector is to be tuned before their first trial."""
        return [search for search in self.searches if search.detector is not None and search.tuned is None]

    def aftermath_of(self, labels: Collection[str]) -> Aftermath | None:
        """What is asked of the models that the searches and baselines of these labels repair; of some is enough."""
        asked = (job.aftermath for job in self.baselines if job.label in labels)
        return next((one for one in asked if one is not None), self.aftermath)

    def models(self, role: Role) -> int:
        """Victims that a setting of that role is meant for, those without a backdoor included."""
        shared = role in ("search", "repeat", CONFIRM) and self.spec.search.per == "all"
        seeds = self.spec.search.confirm or 0 if role == CONFIRM else len(self.spec.seeds)
        return seeds * (len(self.spec.attacks) if shared else 1)

    def without(self, absent: Collection[Key]) -> Plan:
        """What remains where the victims of these attacks, seeds and combinations hold no backdoor.

        With ``victim.require_implanted: run`` their trials remain, but no search that has only such cells: it would
        learn nothing.
        """
        if not absent:
            return self

        def stays(cell: Cell) -> bool:
            return cell.whose not in absent

        searches = [search for search in self.searches if any(map(stays, search.cells))]
        if self.spec.victim.require_implanted == "run":
            return dataclasses.replace(self, searches=tuple(searches))
        return dataclasses.replace(
            self,
            baselines=tuple(job for job in self.baselines if stays(job.cell)),
            searches=tuple(
                dataclasses.replace(one, cells=tuple(filter(stays, one.cells)), fresh=tuple(filter(stays, one.fresh)))
                for one in searches
            ),
        )

    def labels_of(self, defense: str) -> set[str]:
        """Labels of the searches and baselines of a defense."""
        baselines = {job.label for job in self.baselines if job.cell.defense == defense}
        own = [search for search in self.searches if search.defense == defense]
        return baselines | {search.label for search in own} | {one.confirm_label for one in own if one.fresh}

    def victims(self, cost: Callable[[Cell], float] = lambda _: 0.0) -> list[Cell]:
        """One cell per distinct victim, controls first (the others need them for ASR-base).

        Among either the dearest by ``cost`` come first: a long one that is begun last is waited for alone.
        """
        found: dict[Hashable, Cell] = {}
        for cell in self.cells:
            for spec in (cell.victim.control(), cell.victim):
                one = dataclasses.replace(cell, victim=spec, control=False)
                found.setdefault(one.made_from, one)
        return sorted(found.values(), key=lambda cell: (cell.victim != cell.victim.control(), -cost(cell)))


def make_plan(spec: StudySpec) -> Plan:
    """The baselines and searches of a spec, on their cells, combination by combination. Reads no data."""
    return _together(spec, combinations(spec))


def _together(spec: StudySpec, parts: Sequence[Combination]) -> Plan:
    """The plan of a study that has these combinations."""
    first = 1 + max(seed for part in parts for seed in part.spec.seeds)
    plans = [_plan_of(part, range(first, first + (spec.search.confirm or 0))) for part in parts]
    baselines = tuple(job for plan in plans for job in plan.baselines)
    searches = tuple(search for plan in plans for search in plan.searches)
    return Plan(spec, baselines, searches, plans[0].aftermath)  # the aftermath is the whole study's


def _plan_of(part: Combination, fresh_seeds: Sequence[int]) -> Plan:
    """The plan of one combination; ``fresh_seeds``: of the attacker, for what its searches choose."""
    study, curve = part.spec.resolve(), part.spec.curve.every
    before = f"{part.name}/" if part.name else ""

    def cell_of(
        attack: ResolvedAttack, method: ResolvedBaseline | ResolvedSearch, seed: int, own: int, control: bool = False
    ) -> Cell:
        return Cell(
            data=study.data,
            victim=study.victim(attack, seed),
            defense=method.defense,
            defense_label=method.label,
            defense_seed=own,
            clean_fraction=study.clean_fraction,
            clean_source=study.clean_source,
            label_noise=study.label_noise,
            residual_poison=study.residual_poison,
            upstream=study.upstream,
            fresh_head=study.fresh_head,
            control=control,
            scenario=study.scenario,
            combination=part.name,
            swept=part.json,
        )

    baselines = []
    for attack in study.attacks:
        for baseline in study.baselines:
            # An aftermath is read against the clean model as well.
            of_none = bool(study.controls) or study.aftermath is not None
            compared = of_none if baseline.defense == UNDEFENDED else study.controls is True
            roles: list[Role] = ["baseline", "control"] if compared and attack.has_control else ["baseline"]
            for seed, own, role in itertools.product(study.seeds, study.defense_seeds, roles):
                label = f"{before}{attack.name}/{baseline.label}/{role}"
                cell = cell_of(attack, baseline, seed, own, control=role == "control")
                job = Job(label, label, role, cell, baseline.settings, baseline.published, curve, study.aftermath)
                baselines.append(job)
    groups = {"all": study.attacks} if study.shared else {attack.name: (attack,) for attack in study.attacks}
    searches = []
    for group, attacks in groups.items():
        for search, again in itertools.product(study.searches, range(part.spec.search.repeats)):
            pairs = itertools.product(attacks, study.seeds, study.defense_seeds)
            cells = tuple(cell_of(attack, search, seed, own) for attack, seed, own in pairs)
            anew = () if again else itertools.product(attacks, fresh_seeds, study.defense_seeds[:1])
            searches.append(
                Search(
                    label=f"{before}{group}/{search.label}" + (f"/repeat-{again}" if again else ""),
                    defense=search.defense,
                    cells=cells,
                    space=search.space,
                    fixed=search.fixed,
                    detector=search.detector,
                    group=group,
                    repeat=again,
                    fresh=tuple(cell_of(attack, search, seed, own) for attack, seed, own in anew),
                )
            )
    of_searches = study.aftermath if part.spec.aftermath.trials == "all" else None
    return Plan(part.spec, tuple(baselines), tuple(searches), of_searches)


def load_data(spec: StudySpec) -> tuple[Data, Data | None]:
    """The user's data set and, where the scenario has one, the attacker's (DataError); of a sweep, all of them."""
    return read_data(spec, lambda source: source.load())


def read_data(spec: StudySpec, read: Callable[[DataSource], Dataset]) -> tuple[Data, Data | None]:
    """The same, each of them as ``read`` gives it."""
    parts = [part.spec for part in combinations(spec)]
    users = [part.source(part.dataset) for part in parts]
    upstream = spec.scenario.upstream
    attackers = [] if upstream is None else [part.source(upstream) for part in parts]
    if not spec.sweep:
        return read(users[0]), read(attackers[0]) if attackers else None
    found = {source: read(source) for source in dict.fromkeys([*users, *attackers])}
    return found, found if attackers else None


def prepare(spec: StudySpec) -> tuple[Plan, Data, Data | None]:
    """The checked plan of a spec, its data and, where the scenario has such, the attacker's.

    Raises:
        SpecError, SettingError, DataError, ModelError: what the data, the model or a method does not allow.
    """
    data, upstream = load_data(spec)
    plan = plan_on(spec, data, upstream)
    check_plan(plan, data, upstream)
    return plan, data, upstream


def plan_on(spec: StudySpec, data: Data, upstream: Data | None = None) -> Plan:
    """The plan of a spec in which the data say what number the name of a class has (SettingError)."""
    if not spec.sweep:
        return make_plan(with_label_numbers(spec, one_of(data), None if upstream is None else one_of(upstream)))
    parts = []
    for part in combinations(spec):
        own, theirs = part.spec.source(part.spec.dataset), part.spec.scenario.upstream
        attackers = None if theirs is None or upstream is None else data_of(upstream, part.spec.source(theirs))
        named = with_label_numbers(part.spec, data_of(data, own), attackers)
        parts.append(dataclasses.replace(part, spec=named))
    return _together(spec, parts)


def check_plan(plan: Plan, data: Data, upstream: Data | None = None) -> None:
    """Refuse, before any work, what does not fit the data (SettingError, DataError, ModelError)."""
    models: dict[Hashable, Classifier] = {}

    def model_of(cell: Cell, dataset: Dataset) -> Classifier:
        key = (cell.victim.model, cell.victim.width, cell.data)
        if key not in models:
            models[key] = build_model(
                cell.victim.model,
                num_classes=dataset.num_classes,
                width=cell.victim.width,
                image_size=dataset.image_size,
            )
            check_output(models[key], cell.victim.model, dataset.image_size)
        return models[key]

    for cell in plan.cells:
        model_of(cell, data_of(data, cell.data))
    for cell in reversed(plan.victims()):  # controls last: nobody asked for them by name
        attackers = None if upstream is None or cell.upstream is None else data_of(upstream, cell.upstream)
        check_victim(cell.victim, data_of(data, cell.data), attackers)
        cell.victim.make_attack().check_model(model_of(cell, data_of(data, cell.data)))
    trials = [(job.cell, job.settings, job.aftermath) for job in plan.baselines]
    for search in plan.searches:
        trials += [(cell, search.published_settings(), plan.aftermath) for cell in search.cells]
        trials += [(cell, search.published_settings(), None) for cell in search.fresh]
    for cell, settings, aftermath in trials:
        defense, dataset = DEFENSES.create(cell.defense, settings), data_of(data, cell.data)
        check_head(defense, cell)
        defense.check(model_of(cell, dataset), *held(defense, cell, dataset), image_size=dataset.image_size)
        if aftermath is not None:
            check_aftermath(aftermath, cell, settings, dataset)


def held(defense: Defense, cell: Cell, dataset: Dataset) -> tuple[int, int]:
    """How many training and validation samples this defender of the cell will hold (DataError)."""
    if defense.owns is PoisonedData:
        if not cell.victim.releases_training_set:
            where = "" if cell.victim.scenario == "standalone" else f" in scenario {cell.victim.scenario}"
            raise DataError(
                f"defense {defense.name} needs the poisoned training set, and attack {cell.victim.attack} releases "
                f"none{where}; use another attack or another defense"
            )
        return len(attacker_indices(cell.victim, dataset)), 0
    if defense.owns is CleanData:
        return defender_counts(cell, dataset)
    return 0, 0
