"""A spec with every question answered: typed methods, search spaces, recipe, data, and what the defender holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces.space import Space
from trainables.data.load import DataSource
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.scenarios import ScenarioName
from trainables.training.recipes import TrainingRecipe
from trainables.victims.spec import VictimSpec


@dataclass(frozen=True)
class ResolvedAttack:
    """An attack with the settings that the spec gives it, typed; ``has_control``: it implants a backdoor."""

    name: str
    settings: Mapping[str, Any]
    has_control: bool


@dataclass(frozen=True)
class ResolvedBaseline:
    """A defense that is run once: its published point with the spec's settings over it.

    ``label``: the defense's name in this study, its registered one unless the spec gives another.
    """

    label: str
    defense: str
    settings: Mapping[str, Any]
    published: bool


@dataclass(frozen=True)
class ResolvedSearch:
    """A defense that is searched, under its label: its space, and the settings that the spec fixes beside it.

    ``detector``: the space of its detector, which is tuned before; None: there is none, or ``space`` holds it.
    """

    label: str
    defense: str
    space: Space
    fixed: Mapping[str, Any]
    detector: Space | None = None


@dataclass(frozen=True)
class Resolved:
    """All that decides a study's work. `plan.jobs.make_plan` needs nothing else of a spec.

    Args:
        data: the user's task.
        upstream: the attacker's, where it is another one.
        attacks, baselines, searches: in the order of the spec.
        shared: each setting of a search is scored over all attacks (``search.per: all``).
        seeds: of the victims.
        defense_seeds: of the defenders, each against every victim.
        model, width, recipe, precision: of the victims.
        reserved_fraction: share of every class that the attacker never had.
        scenario: as spelled in the spec.
        victim_scenario: what that means for the making of victims.
        clean_fraction, clean_source: what a defender holds.
        label_noise, residual_poison: shares of it that are mislabelled, and poisoned.
        fresh_head: defenders with clean data train a new head.
        controls: baselines are also run on clean models; ``undefended``: the clean model is measured as it is.
        aftermath: what is asked of repaired models.
    """

    data: DataSource
    upstream: DataSource | None
    attacks: tuple[ResolvedAttack, ...]
    baselines: tuple[ResolvedBaseline, ...]
    searches: tuple[ResolvedSearch, ...]
    shared: bool
    seeds: tuple[int, ...]
    defense_seeds: tuple[int, ...]
    model: str
    width: int | None
    recipe: TrainingRecipe
    precision: str
    reserved_fraction: float | None
    scenario: str
    victim_scenario: ScenarioName
    clean_fraction: float
    clean_source: str
    fresh_head: bool
    controls: bool | Literal["undefended"]
    aftermath: Aftermath | None = None
    label_noise: float = 0.0
    residual_poison: float = 0.0

    def victim(self, attack: ResolvedAttack, seed: int) -> VictimSpec:
        """What decides the victim of an attack under a seed."""
        return VictimSpec(
            attack=attack.name,
            attack_settings=attack.settings,
            model=self.model,
            width=self.width,
            recipe=self.recipe,
            seed=seed,
            precision=self.precision,
            reserved_fraction=self.reserved_fraction,
            scenario=self.victim_scenario,
        )
