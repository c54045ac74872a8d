"""Spec -> the work: victims, baselines, searches, and their cost."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.space import Space, fingerprint
from study.plan.targets import with_label_numbers
from study.spec.resolved import ResolvedAttack, ResolvedBaseline, ResolvedSearch
from study.spec.schema import StudySpec
from trainables.aftermath import check_aftermath
from trainables.data.images import DataError, Dataset
from trainables.data.split import split_clean
from trainables.defenses.base import DEFENSES, CleanData, Defense, PoisonedData
from trainables.evaluation.aftermath.settings import UNDEFENDED, Aftermath
from trainables.job import Cell, Job, Role
from trainables.models.build import build_model, check_output
from trainables.victims import VictimSpec, attacker_indices, check_victim


@dataclass(frozen=True)
class Search:
    """One Optuna study: settings of one defense, each scored on every one of ``cells``.

    Args:
        label: attack (or ``all``) and the defense's label.
        defense: registered name.
        cells: that a setting is run on.
        space: what Optuna searches.
        fixed: settings beside it that never change.
        detector: the space of the detector, which is tuned first, on what it finds alone; None: there is none, or it is
            searched like everything else.
        tuned: the detector's settings that were chosen so; None: not yet, the published ones stand for them.
    """

    label: str
    defense: str
    cells: tuple[Cell, ...]
    space: Space
    fixed: Mapping[str, Any]
    detector: Space | None = None
    tuned: Mapping[str, Any] | None = None

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
        searched = (cell for search in self.searches for cell in search.cells)
        return list(dict.fromkeys([*(job.cell for job in self.baselines), *searched]))

    def jobs_by_label(self) -> Counter[str]:
        """How many trials each search and each baseline has in the finished study."""
        count = Counter(job.label for job in self.baselines)
        return count + Counter({one.label: len(one.cells) * self.most_settings(one) for one in self.searches})

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
        shared = role == "search" and self.spec.search.per == "all"
        return len(self.spec.seeds) * (len(self.spec.attacks) if shared else 1)

    def without(self, absent: Collection[tuple[str, int]]) -> Plan:
        """What remains where the victims of these attacks and seeds hold no backdoor.

        With ``victim.require_implanted: run`` their trials remain, but no search that has only such cells: it would
        learn nothing.
        """
        if not absent:
            return self

        def stays(cell: Cell) -> bool:
            return (cell.attack, cell.seed) not in absent

        searches = [search for search in self.searches if any(map(stays, search.cells))]
        if self.spec.victim.require_implanted == "run":
            return dataclasses.replace(self, searches=tuple(searches))
        return dataclasses.replace(
            self,
            baselines=tuple(job for job in self.baselines if stays(job.cell)),
            searches=tuple(
                dataclasses.replace(one, cells=tuple(cell for cell in one.cells if stays(cell))) for one in searches
            ),
        )

    def labels_of(self, defense: str) -> set[str]:
        """Labels of the searches and baselines of a defense."""
        baselines = {job.label for job in self.baselines if job.cell.defense == defense}
        return baselines | {search.label for search in self.searches if search.defense == defense}

    def victims(self) -> list[Cell]:
        """One cell per distinct victim, controls first (the others need them for ASR-base)."""
        found: dict[VictimSpec, Cell] = {}
        for cell in self.cells:
            for spec in (cell.victim.control(), cell.victim):
                found.setdefault(spec, dataclasses.replace(cell, victim=spec, control=False))
        return sorted(found.values(), key=lambda cell: cell.victim != cell.victim.control())


def make_plan(spec: StudySpec) -> Plan:
    """The baselines and searches of a spec, on their cells. Reads no data."""
    study = spec.resolve()

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
            upstream=study.upstream,
            fresh_head=study.fresh_head,
            control=control,
            scenario=study.scenario,
        )

    baselines = []
    for attack in study.attacks:
        for baseline in study.baselines:
            # An aftermath is read against the clean model as well.
            compared = study.controls or (study.aftermath is not None and baseline.defense == UNDEFENDED)
            roles: list[Role] = ["baseline", "control"] if compared and attack.has_control else ["baseline"]
            for seed, own, role in itertools.product(study.seeds, study.defense_seeds, roles):
                label = f"{attack.name}/{baseline.label}/{role}"
                cell = cell_of(attack, baseline, seed, own, control=role == "control")
                job = Job(label, label, role, cell, baseline.settings, baseline.published, study.aftermath)
                baselines.append(job)
    groups = {"all": study.attacks} if study.shared else {attack.name: (attack,) for attack in study.attacks}
    searches = []
    for group, attacks in groups.items():
        for search in study.searches:
            pairs = itertools.product(attacks, study.seeds, study.defense_seeds)
            cells = tuple(cell_of(attack, search, seed, own) for attack, seed, own in pairs)
            label = f"{group}/{search.label}"
            searches.append(Search(label, search.defense, cells, search.space, search.fixed, search.detector))
    of_searches = study.aftermath if spec.aftermath.trials == "all" else None
    return Plan(spec, tuple(baselines), tuple(searches), of_searches)


def load_data(spec: StudySpec) -> tuple[Dataset, Dataset | None]:
    """The user's data set and, where the scenario has one, the attacker's (DataError)."""

    upstream = spec.scenario.upstream
    return spec.source(spec.dataset).load(), None if upstream is None else spec.source(upstream).load()


def prepare(spec: StudySpec) -> tuple[Plan, Dataset, Dataset | None]:
    """The checked plan of a spec, its data set and, where the scenario has one, the attacker's.

    Raises:
        SpecError, SettingError, DataError, ModelError: what the data, the model or a method does not allow.
    """
    dataset, upstream = load_data(spec)
    plan = make_plan(with_label_numbers(spec, dataset, upstream))
    check_plan(plan, dataset, upstream)
    return plan, dataset, upstream


def check_plan(plan: Plan, dataset: Dataset, upstream: Dataset | None = None) -> None:
    """Refuse, before any work, what does not fit the data (SettingError, DataError, ModelError)."""
    model = build_model(
        plan.spec.model, num_classes=dataset.num_classes, width=plan.spec.width, image_size=dataset.image_size
    )
    check_output(model, plan.spec.model, dataset.image_size)
    for cell in reversed(plan.victims()):  # controls last: nobody asked for them by name
        check_victim(cell.victim, dataset, upstream)
    trials = [(job.cell, job.settings, job.aftermath) for job in plan.baselines]
    for search in plan.searches:
        trials += [(cell, search.published_settings(), plan.aftermath) for cell in search.cells]
    for cell, settings, aftermath in trials:
        defense = DEFENSES.create(cell.defense, settings)
        defense.check(model, *held(defense, cell, dataset), image_size=dataset.image_size)
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
        split = split_clean(dataset.train.labels, cell.clean_fraction, num_classes=dataset.num_classes, seed=cell.seed)
        return len(split.train), len(split.validation)
    return 0, 0
