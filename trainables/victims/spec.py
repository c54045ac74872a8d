"""What decides a victim: its content key, the images that its attacker has, and what is refused before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import ATTACKS, TRIED, Attack
from trainables.attacks.triggers import check_trigger
from trainables.data.images import DataError, Dataset
from trainables.data.split import split_clean
from trainables.evaluation.metrics import report_half
from trainables.models.build import MODELS
from trainables.plugins.origin import origin
from trainables.scenarios import PROBE, ScenarioName, check_scenario
from trainables.storage.store import content_key
from trainables.training.recipes import TrainingRecipe

# Part of every key: raise it when a change makes stored victims wrong.
SCHEMA = 2


@dataclass(frozen=True)
class VictimSpec:
    """All that decides a victim.

    Args:
        attack: registered name; ``clean`` is the control.
        attack_settings: over the attack's defaults.
        model, width: architecture and channels of its stem (None: its own).
        recipe: how it is trained.
        seed: of poisoning, initialisation and training.
        precision: of the arithmetic, see `training.autocast`.
        reserved_fraction: share of every class kept from the attacker for the defender (``clean_source=heldout``).
        scenario: what the user's data set is to the attacker. ``standalone``: the task that was attacked. ``new_head``:
            another one; the user puts a new head on the model (transfer). ``encoder``: another one; the attacker
            released an encoder, trained without labels. The last two need an upstream data set.
    """

    attack: str
    model: str
    recipe: TrainingRecipe
    seed: int = 0
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    precision: str = "auto"
    reserved_fraction: float | None = None
    scenario: ScenarioName = "standalone"

    def __hash__(self) -> int:  # the settings are a mapping, which has none
        return hash((self.attack, self.model, self.recipe, self.seed, self.width, self.scenario))

    def make_attack(self) -> Attack:
        """The attack with its settings (SettingError)."""
        return ATTACKS.create(self.attack, self.attack_settings)

    def control(self) -> VictimSpec:
        """The clean model that this victim's ASR-base and clean accuracy are read against."""
        if not ATTACKS.get(self.attack).implants_backdoor:
            return self
        name, settings = self.make_attack().control()
        return dataclasses.replace(self, attack=name, attack_settings=settings)

    @property
    def releases_training_set(self) -> bool:
        """Whether the training set comes with the model: under a new head it is that of another task."""
        attack = self.make_attack()
        return not attack.implants_backdoor or (attack.releases_training_set and self.scenario != "new_head")

    def name(self, dataset: Dataset, upstream: Dataset | None = None) -> str:
        """Readable prefix and content key: the artifact's name in the store."""
        attack = self.make_attack().at(dataset.image_size)
        own = {key: value for key, value in attack.identity().items() if attack.came_later.get(key, ...) != value}
        identity = {
            "schema": SCHEMA,
            **own,
            **self._conditions(dataset, upstream),
        }
        # An edited trigger is another trigger, whatever its settings say.
        if (by := origin(ATTACKS, self.attack)) is not None:
            identity["attack_by"] = by
        prefix = "".join(letter if letter.isalnum() else "-" for letter in dataset.name.rsplit("/", 1)[-1])[:24]
        return f"{self.attack}-{prefix}-{self.model}-seed{self.seed}-{content_key(identity)}"

    def task(self, dataset: Dataset, upstream: Dataset | None = None) -> str:
        """Key of all that attacks on the same task have in common: what they make may be shared under it."""
        return content_key(self._conditions(dataset, upstream))

    def _conditions(self, dataset: Dataset, upstream: Dataset | None) -> dict[str, Any]:
        """All that decides a victim beside its attack, JSON-able."""
        before: dict[str, Any] = {}
        if upstream is not None:
            before = {
                "scenario": self.scenario,
                "upstream": upstream.fingerprint,
                "upstream_mean": upstream.mean,
                "upstream_std": upstream.std,
                "probe": dataclasses.asdict(PROBE) if self.scenario == "new_head" else None,
            }
        if (by := origin(MODELS, self.model)) is not None:
            before["model_by"] = by
        return {
            **before,
            "data": dataset.fingerprint,
            "classes": dataset.num_classes,
            "model": self.model,
            "width": self.width,
            "recipe": dataclasses.asdict(self.recipe),
            "flip": dataset.flip,
            "mean": dataset.mean,
            "std": dataset.std,
            "seed": self.seed,
            "precision": self.precision,
            "reserved_fraction": self.reserved_fraction,
        }


def attacker_indices(spec: VictimSpec, dataset: Dataset) -> Tensor:
    """The attacker's part of the training set: all of it, or what `reserved_fraction` leaves."""
    left = torch.ones(len(dataset.train), dtype=torch.bool)
    left[reserved_indices(spec, dataset)] = False
    indices = left.nonzero()[:, 0]
    if spec.reserved_fraction is not None and len(dataset.train.labels[indices].unique()) < dataset.num_classes:
        raise DataError(
            f"clean_source heldout with clean_fraction {spec.reserved_fraction} leaves the attacker a class without "
            "images; use a smaller clean_fraction"
        )
    return indices


def attacker_labels(spec: VictimSpec, dataset: Dataset) -> Tensor:
    """Labels of the attacker's clean training set: int64, (n,)."""
    return dataset.train.labels[attacker_indices(spec, dataset)]


def reserved_indices(spec: VictimSpec, dataset: Dataset) -> Tensor:
    """The part of the training set that the attacker was denied."""
    if spec.reserved_fraction is None:
        return torch.arange(0)
    classes = dataset.num_classes
    return split_clean(dataset.train.labels, spec.reserved_fraction, num_classes=classes, seed=spec.seed).all


def check_victim(spec: VictimSpec, dataset: Dataset, upstream: Dataset | None = None) -> None:
    """Refuse a victim that cannot be made of this data, before any work (SettingError, DataError)."""
    attack = spec.make_attack()
    check_scenario(spec.scenario, attack, dataset, upstream)
    if upstream is not None and spec.reserved_fraction is not None:
        raise DataError(
            f"clean_source heldout means nothing in scenario {spec.scenario}: the attacker has no image of "
            f"{dataset.name} anyway; use overlap"
        )
    if spec.scenario == "new_head" and upstream is not None:
        check_victim(dataclasses.replace(spec, scenario="standalone"), upstream)
        attack.check_target(dataset.num_classes)
    else:
        indices = attacker_indices(spec, dataset)
        attack.check(dataset.train.labels[indices], dataset.num_classes, dataset.image_size)
    # What is known before any training is tried before any training: a trigger that cannot be stored is no result.
    if (trigger := attack.preview_trigger(dataset.image_size, spec.seed)) is not None:
        check_trigger(spec.attack, trigger, dataset.test.images[:TRIED])
    in_report = report_half(len(dataset.test))
    measured = attack.targets(dataset.test.labels, dataset.num_classes) != dataset.test.labels
    if not (measured & in_report).any() or not (measured & ~in_report).any():
        raise DataError(
            f"data set {dataset.name}: {len(dataset.test)} test images leave half of the test set without an image to "
            "trigger; use a larger test set"
        )
