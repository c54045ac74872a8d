"""A defense under test: run at small settings against one shared victim of the toy task."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from superft.testing.toy import SMALL
from trainables import trial
from trainables.data.images import Dataset
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, Assets, CleanData, Defense, PoisonedData, Repair
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.trainer import Trainer
from trainables.trial import assets_for
from trainables.trial_result import TrialResult
from trainables.victims.make import make_trainer
from trainables.victims.victim import Victim

CPU = torch.device("cpu")
# What a run may cost, see `cost`: less than a tenth of a second at width 2 and 16 pixels.
BUDGET = 1200
CLEAN_FRACTION = 0.3


def cost(defense: Defense, n: int) -> int:
    """Planned samples, with a step's own overhead as that of 25 tiny images."""
    plan = defense.plan(n, n)
    return plan.forward_samples + plan.backward_samples + plan.input_backward_samples + 25 * plan.steps


def small_settings(
    name: str, n: int, start: Mapping[str, Any] = MappingProxyType({}), /, **given: Any
) -> dict[str, Any]:
    """The defaults of a defense with its numbers halved, one by one, until its own plan is within the budget.

    Only halvings that the defense accepts and that shrink its plan (without emptying it) are taken, so rates and
    thresholds stay as they are. ``given`` settings are kept; ``start`` stands in for the defaults.
    """
    settings: dict[str, Any] = {**start, **given}

    def work(candidate: Mapping[str, Any]) -> int:
        return cost(DEFENSES.create(name, candidate), n)

    def halvings(small_counts: bool) -> Iterator[tuple[int, str, dict[str, Any]]]:
        for key, value in dataclasses.asdict(DEFENSES.create(name, settings)).items():
            if key in given or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, int) and (value < 8) != small_counts:
                continue
            try:
                smaller = {**settings, key: type(value)(value / 2)}
                planned = work(smaller)
            except SettingError:
                continue
            if 0 < planned < now:
                yield planned, key, smaller

    while (now := work(settings)) > BUDGET:
        # Small counts (phases, stages) are modes rather than lengths: they come last.
        options = list(halvings(False)) or list(halvings(True))
        assert options, f"{name}: no setting makes its planned work smaller than {now} samples"
        settings = min(options, key=lambda option: option[:2])[2]
    return settings


@dataclass(frozen=True)
class Run:
    """One repair with everything that went in and came out."""

    repair: Repair
    assets: Assets
    trainer: Trainer

    @property
    def state(self) -> dict[str, Tensor]:
        return dict(self.repair.model.state_dict())


@dataclass(frozen=True)
class Again:
    """A repair a second time, beside what was handed to it and what hooks and the global generator saw of it."""

    run: Run
    seen: Mapping[str, int]
    handed_over: Assets
    victim_before: Mapping[str, Tensor]
    drew_globally: bool


@dataclass(frozen=True)
class Told:
    """A whole trial: its result, the model that the defense returned, and the one that was measured."""

    result: TrialResult
    returned: nn.Module
    measured: nn.Module


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@dataclass
class Subject:
    """A registered defense at small settings, against one shared victim.

    Args:
        name: of the defense.
        victim: any; what it has learned does not matter here.
        data: the task it was made on.
        small: settings at which a few steps show what the fields of the defense do; most need none. Masks that start
            at 1 and are pruned below 0.9 would not move enough at published rates.
    """

    name: str
    victim: Victim
    data: Dataset
    small: Mapping[str, Any] = field(default_factory=dict)
    outcomes: dict[str, str | None] = field(default_factory=dict, repr=False)

    @cached_property
    def defense(self) -> Defense:
        return self.create()

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.small_beside()

    def small_beside(self, **given: Any) -> dict[str, Any]:
        """Small settings that keep the ``given`` ones."""
        return small_settings(self.name, self.n_owned, {**SMALL.get(self.name, {}), **self.small}, **given)

    @cached_property
    def n_owned(self) -> int:
        owns = DEFENSES.get(self.name).owns
        if owns is CleanData:
            return len(self.victim.clean_split(self.data, CLEAN_FRACTION, "overlap").train)
        return len(self.data.train) if owns is PoisonedData else 0

    def create(self, **settings: Any) -> Defense:
        return DEFENSES.create(self.name, {**self.settings, **settings})

    def assets(self) -> Assets:
        cell = Cell(DataSource("toy"), self.victim.spec, self.name, CLEAN_FRACTION)
        return assets_for(self.defense, cell, self.data, self.victim, CPU)

    def run(
        self, defense: Defense | None = None, *, seed: int = 0, assets: Assets | None = None, observe: bool = False
    ) -> tuple[Run, dict[str, int]]:
        """Repair a copy of the victim; with ``observe``, count samples through hooks on every model that is used."""
        trainer = make_trainer(self.victim.spec, self.data, CPU, seed=seed)
        model, seen = copy.deepcopy(self.victim.model), {"forward": 0, "backward": 0}
        if observe:
            instrument(model, seen)
            fresh = trainer.new_model
            trainer.new_model = lambda generator: instrument(fresh(generator), seen)
        assets = self.assets() if assets is None else assets
        return Run((defense or self.defense).repair(model, assets, trainer), assets, trainer), seen

    @cached_property
    def first(self) -> Run:
        return self.run()[0]

    @cached_property
    def again(self) -> Again:
        """The same repair once more, watched, while the global generator stands somewhere else."""
        victim_before = copy.deepcopy(self.victim.model.state_dict())
        assets = self.assets()
        handed_over = copy.deepcopy(assets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4321)
            before = torch.get_rng_state()
            run, seen = self.run(assets=assets, observe=True)
            drew = not torch.equal(torch.get_rng_state(), before)
        return Again(run, seen, handed_over, victim_before, drew)

    @cached_property
    def told(self) -> Told:
        """The repair as a trial that ends in a row."""
        returned, measured = list[nn.Module](), list[nn.Module]()
        cls = type(self.defense)
        original_repair = cls.repair

        def repair(defense: Defense, *arguments: Any) -> Repair:
            found = original_repair(defense, *arguments)
            returned.append(found.model)
            return found

        def spy(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
            measured.append(model)
            return evaluate(model, *arguments, **settings)

        cell = Cell(DataSource("toy"), self.victim.spec, self.name, CLEAN_FRACTION)
        with mock.patch.object(cls, "repair", repair), mock.patch.object(trial, "evaluate", spy):
            result = trial.run_trial(cell, self.settings, dataset=self.data, victim=self.victim, device=CPU)
        return Told(result, returned[0], measured[0])


def instrument(model: Classifier, seen: dict[str, int]) -> Classifier:
    """Count, in ``seen``, the samples that go forward through the body of ``model`` and whose gradients come back."""

    def passed(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(returned)

    def returned(gradient: Tensor) -> None:
        seen["backward"] += len(gradient)

    # On the neck: every way through the model passes it, also one that asks for the features alone.
    model.neck.register_forward_hook(passed)
    return model
