"""Spec -> the work: victims, baselines, searches, and their cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import space as search_spaces
from search_spaces.space import Space
from study.record.cost import epochs
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.attacks.base import ATTACKS
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource, load_dataset
from trainables.data.split import split_clean
from trainables.defenses.base import DEFENSES, CleanData, Defense, PoisonedData
from trainables.models.build import build_model, check_output
from trainables.scenarios import ScenarioName
from trainables.trial import Cell
from trainables.victims import VictimSpec, attacker_indices, check_victim

# Half of the data for each side makes a standalone victim like any other.
VICTIM_SCENARIOS: dict[str, ScenarioName] = {
    "standalone": "standalone",
    "same-label": "standalone",
    "new-head": "new_head",
    "encoder": "encoder",
}


@dataclass(frozen=True)
class Job:
    """One Ray trial: a setting on a cell.

    Args:
        trial: id of the setting within the study (``badnets/super_ft/0007``); several cells may share it.
        role: ``search``, ``baseline``, or ``control``: a baseline on the clean model.
        cell: position in the plan's cells.
        settings: of the defense, complete enough to rebuild it.
        published: whether they are exactly the published point.
    """

    trial: str
    role: str
    cell: int
    settings: dict[str, Any]
    published: bool


@dataclass(frozen=True)
class Search:
    """One Optuna study: settings of one defense, each scored on every one of ``cells``."""

    label: str
    defense: str
    cells: tuple[int, ...]
    space: Space
    fixed: Mapping[str, Any]

    def trial_id(self, number: int) -> str:
        """Id of the setting that Optuna counts as ``number``."""
        return f"{self.label}/{number:04d}"

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The defense's settings for searched parameters."""
        return {**self.fixed, **self.space.to_settings(params)}

    def paper_params(self) -> dict[str, Any]:
        """The published point as searched parameters (trial 0)."""
        return self.space.paper_params()


@dataclass(frozen=True)
class Plan:
    """All the work of a study."""

    spec: StudySpec
    cells: tuple[Cell, ...]
    baselines: tuple[Job, ...]
    searches: tuple[Search, ...]

    @property
    def total_jobs(self) -> int:
        """Ray trials of the finished study, i.e. rows of its ledger."""
        return len(self.baselines) + sum(len(search.cells) for search in self.searches) * self.spec.search.trials

    def jobs_by_cell(self) -> dict[int, int]:
        """How many of them each cell has."""
        count = {job.cell: 1 for job in self.baselines}
        return count | {cell: self.spec.search.trials for search in self.searches for cell in search.cells}

    def victims(self) -> list[Cell]:
        """One cell per distinct victim, controls first (the others need them for ASR-base)."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            for spec in (cell.victim.control(), cell.victim):
                found.setdefault(repr(spec), dataclasses.replace(cell, victim=spec, control=False))
        return sorted(found.values(), key=lambda cell: cell.victim != cell.victim.control())


def make_plan(spec: StudySpec) -> Plan:
    """The cells, baselines and searches of a spec. Reads no data."""
    cells: list[Cell] = []
    scenario = spec.scenario
    fraction, source, reserved = spec.clean_fraction, spec.clean_source, None
    if scenario.type == "same-label":
        fraction, source, reserved = 0.5 * spec.clean_fraction, "heldout", 0.5
    elif source == "heldout":
        reserved = fraction
    upstream = None
    if scenario.upstream is not None:
        upstream = DataSource(scenario.upstream, spec.image_size, spec.data_root, spec.download)

    def cell_of(attack: str, defense: str, seed: int, control: bool = False) -> int:
        victim = VictimSpec(
            attack=attack,
            attack_settings=spec.attack_settings(attack),
            model=spec.model,
            width=spec.width,
            recipe=spec.recipe(),
            seed=seed,
            precision=spec.precision,
            reserved_fraction=reserved,
            scenario=VICTIM_SCENARIOS[scenario.type],
        )
        data = DataSource(spec.dataset, spec.image_size, spec.data_root, spec.download)
        fresh_head = scenario.has_upstream and scenario.head == "fresh"
        cells.append(Cell(data, victim, defense, fraction, source, upstream, fresh_head, control))
        return len(cells) - 1

    baselines = []
    for attack in spec.attacks:
        for defense in spec.baselines:
            settings = {**search_spaces.paper_point(defense), **spec.defense_settings(defense)}
            for seed in spec.seeds:
                cell = cell_of(attack, defense, seed)
                published = is_published(defense, settings)
                baselines.append(Job(f"{attack}/{defense}/baseline", "baseline", cell, settings, published))
                if scenario.has_upstream and scenario.controls and ATTACKS.get(attack).implants_backdoor:
                    cell = cell_of(attack, defense, seed, control=True)
                    baselines.append(Job(f"{attack}/{defense}/control", "control", cell, settings, published))
    searches = []
    groups: list[tuple[str, list[str]]] = [(attack, [attack]) for attack in spec.attacks]
    if spec.search.per == "all":
        groups = [("all", list(spec.attacks))]
    for label, attacks in groups:
        for defense in spec.defenses:
            space = spec.space(defense)
            fixed = spec.defense_settings(defense)
            searched = [key for key in space.to_settings(space.paper_params()) if key in fixed]
            if searched:
                raise SpecError(
                    f"defense.{defense}.{searched[0]} is fixed by the spec but searched by its space; "
                    f"drop it, or list {defense} under baselines instead"
                )
            members = tuple(cell_of(attack, defense, seed) for attack in attacks for seed in spec.seeds)
            searches.append(Search(f"{label}/{defense}", defense, members, space, fixed))
    return Plan(spec, tuple(cells), tuple(baselines), tuple(searches))


def is_published(defense: str, settings: Mapping[str, Any]) -> bool:
    """Whether settings agree with the published point in everything that it states."""
    paper = search_spaces.paper_point(defense)
    # What is neither searched nor fixed stays at its default.
    complete = dataclasses.asdict(DEFENSES.create(defense, settings)) if paper else {}
    return bool(paper) and all(_equal(complete.get(key), value) for key, value in paper.items())


def _equal(value: Any, published: Any) -> bool:
    if isinstance(published, float) and isinstance(value, int | float):
        return math.isclose(value, published, rel_tol=1e-9)
    return bool(value == published)


def load_data(spec: StudySpec) -> tuple[Dataset, Dataset | None]:
    """The user's data set and, where the scenario has one, the attacker's (DataError)."""

    def load(name: str) -> Dataset:
        return load_dataset(name, image_size=spec.image_size, root=spec.data_root, download=spec.download)

    return load(spec.dataset), None if spec.scenario.upstream is None else load(spec.scenario.upstream)


def check_plan(plan: Plan, dataset: Dataset, upstream: Dataset | None = None) -> None:
    """Refuse, before any work, what does not fit the data (SettingError, DataError, ModelError)."""
    model = build_model(
        plan.spec.model, num_classes=dataset.num_classes, width=plan.spec.width, image_size=dataset.image_size
    )
    check_output(model, plan.spec.model, dataset.image_size)
    for cell in reversed(plan.victims()):  # controls last: nobody asked for them by name
        check_victim(cell.victim, dataset, upstream)
    trials = [(job.cell, job.settings) for job in plan.baselines]
    trials += [(cell, search.settings(search.paper_params())) for search in plan.searches for cell in search.cells]
    for index, settings in trials:
        defense = DEFENSES.create(plan.cells[index].defense, settings)
        defense.check(model, *_held(defense, plan.cells[index], dataset), image_size=dataset.image_size)


def _held(defense: Defense, cell: Cell, dataset: Dataset) -> tuple[int, int]:
    """How many training and validation samples this defender will hold (DataError)."""
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


@dataclass(frozen=True)
class Cost:
    """Planned work: E is one full training epoch's compute, 3 forward-equivalents per training image."""

    victims: float
    baselines: float
    search_per_setting: float
    searches: float

    @property
    def total(self) -> float:
        return self.victims + self.baselines + self.searches


def trial_cost(cell: Cell, settings: Mapping[str, Any], dataset: Dataset) -> float:
    """Planned work of one trial, in E."""
    defense = DEFENSES.create(cell.defense, settings)
    n_train = len(attacker_indices(cell.victim, dataset))
    work = defense.plan_for(dataset.num_classes, *_held(defense, cell, dataset))
    return float(epochs(work.forward_samples, work.backward_samples, work.input_backward_samples, n_train))


def estimate_cost(plan: Plan, dataset: Dataset, upstream: Dataset | None = None) -> Cost:
    """Work in E; a searched setting is taken to cost what the published one does, a search at most its budget."""

    def victim_cost(victim: VictimSpec) -> float:
        unit = len(attacker_indices(victim, dataset))
        n_train = unit if upstream is None else len(upstream.train)
        return victim.recipe.steps(n_train) * min(victim.recipe.batch_size, n_train) / unit

    baselines = sum(trial_cost(plan.cells[job.cell], job.settings, dataset) for job in plan.baselines)
    budget = plan.spec.search.budget_epochs
    per_setting = searches = 0.0
    for search in plan.searches:
        paper = search.settings(search.paper_params())
        one = math.fsum(trial_cost(plan.cells[cell], paper, dataset) for cell in search.cells)
        per_setting += one
        whole = one * plan.spec.search.trials
        searches += whole if budget is None else min(whole, max(one, budget * len(search.cells)))
    victims = math.fsum(victim_cost(cell.victim) for cell in plan.victims())
    return Cost(victims, baselines, per_setting, searches)
