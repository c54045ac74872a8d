"""An attack under test: carried out on the toy task, once for each purpose."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from superft.testing.toy import toy_dataset, toy_spec
from superft.testing.toy_victims import toy
from trainables.attacks.base import Attack, DataPoisoning, Implanted
from trainables.attacks.triggers import Trigger
from trainables.data.images import Dataset, ImageSet, TriggeredSet
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.storage.memo import Memo
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec

CPU = torch.device("cpu")
# Learns the toy at 16 pixels in 3 to 4 seconds of one core (clean accuracy about 0.95 at width 4).
LEARN = TrainingRecipe(epochs=12, batch_size=32, lr=0.05, schedule="one_cycle")
# A few steps: enough to see that something differs.
GLANCE = TrainingRecipe(epochs=0.5, batch_size=16, lr=0.05, schedule="one_cycle")


@dataclass(frozen=True)
class Made:
    """An attack carried out on a data set, with the work that was counted and the names of what the memo now holds."""

    attack: Attack
    data: Dataset
    implanted: Implanted
    triggered: TriggeredSet
    work: Counters = field(default_factory=Counters)
    remembered: frozenset[str] = frozenset()

    @property
    def released(self) -> ImageSet:
        """The training set as the attacker releases it."""
        return self.implanted.poisoned.apply(self.data.train)

    def digest(self, *, with_settings: bool = True) -> str:
        """Over everything that must be the same for the same seed: selection, samples, trigger, test set, weights.

        ``with_settings``: the trigger's own settings too, where a field may stand that nothing reads.
        """
        state = hashlib.blake2b(digest_size=16)
        poisoned, triggered = self.implanted.poisoned, self.triggered
        tensors = [poisoned.indices, poisoned.images, poisoned.labels, poisoned.kinds, poisoned.in_place]
        tensors += [triggered.images, triggered.labels, triggered.targets, triggered.sources]
        for module in (self.implanted.trigger, self.implanted.model):
            tensors += module.state_dict().values()
        for tensor in tensors:
            state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if with_settings:
            state.update(json.dumps(self.implanted.trigger.settings(), sort_keys=True).encode())
        return state.hexdigest()


@dataclass(frozen=True)
class Again:
    """An attack carried out a second time, beside what it was handed and whether it drew what it may not draw."""

    made: Made
    handed_over: tuple[ImageSet, ImageSet]
    drew_globally: bool


def carry_out(spec: VictimSpec, data: Dataset, memo: Memo | None = None) -> Made:
    """Implant the attack of ``spec`` and stamp the test set, as `obtain_victim` does.

    Args:
        memo: of the data set's other victims; None: this is the first.
    """
    attack, trainer = spec.make_attack(), make_trainer(spec, data, CPU, seed=spec.seed)
    trainer.memo = memo or trainer.memo
    attack.check(data.train.labels, data.num_classes, data.image_size)
    implanted = attack.implant(data.train, trainer, spec.recipe)
    triggered = attack.triggered_test(implanted.trigger, data.test, data.num_classes)
    return Made(attack, data, implanted, triggered, trainer.counters, frozenset([*trainer.made, *trainer.reused]))


@dataclass
class Subject:
    """A registered attack, carried out at most once per purpose.

    Args:
        name: of the attack.
        small: settings over its defaults that make it affordable on 200 images (fewer epochs of a pre-training).
        others: field -> other values that it takes, for fields of free text, whose values nobody can guess.
        model: that the backdoor is planted in, one whose width can be set.
    """

    name: str
    small: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    model: str = "preact_resnet18"
    outcomes: dict[str, str | None] = field(default_factory=dict, repr=False)

    def spec(
        self, *, seed: int = 0, width: int = 2, recipe: TrainingRecipe | None = None, **settings: Any
    ) -> VictimSpec:
        """A victim of the attack on the toy, with ``settings`` over the small ones."""
        given = {**self.small, **settings}
        return toy_spec(self.name, seed=seed, model=self.model, width=width, recipe=recipe, **given)

    @cached_property
    def attack(self) -> Attack:
        return self.spec().make_attack()

    @cached_property
    def made(self) -> Made:
        """After one epoch on 200 images of 16 pixels: enough for all that is no rate."""
        return carry_out(self.spec(), toy_dataset())

    @cached_property
    def again(self) -> Again:
        """The same attack once more, on a data set of its own, while the global generator stands somewhere else."""
        data = toy_dataset()
        handed_over = copy.deepcopy((data.train, data.test))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(987)
            before = torch.get_rng_state()
            made = carry_out(self.spec(), data)
            drew = not torch.equal(torch.get_rng_state(), before)
        return Again(made, handed_over, drew)

    @cached_property
    def learned(self) -> Made:
        """After a real, small training: rates mean something."""
        return carry_out(self.spec(width=4, recipe=LEARN), toy_dataset(train=1000, test=400))

    @cached_property
    def trigger(self) -> Trigger:
        """For images of 16 pixels: before any training where it is known then, else as the attack left it."""
        return self.attack.preview_trigger(16, 0) or self.made.implanted.trigger

    def variant(self, **settings: Any) -> Made | None:
        """With other settings after a few steps, as `glance` does; None where the attack refuses or lacks them.

        What is poisoned, stamped and counted is the same after a whole training; the model is not.
        """
        if not self.accepts(toy().image_size, **settings):
            return None
        return self.glance(self.spec(recipe=GLANCE, **settings))

    def accepts(self, image_size: int, **settings: Any) -> bool:
        """Whether the attack takes these settings for the toy task at ``image_size`` pixels."""
        try:
            self.spec(**settings).make_attack().check(toy().train.labels, 10, image_size)
        except SettingError:
            return False
        return True

    def outcome(self, **settings: Any) -> str | None:
        """Something that differs when attacks differ, after a few steps; None where the settings are refused."""
        key = repr(sorted(settings.items()))
        if key not in self.outcomes:
            self.outcomes[key] = None
            if self.accepts(16, **settings):
                made = self.glance(self.spec(recipe=GLANCE, **settings))
                self.outcomes[key] = made.digest(with_settings=False)
        return self.outcomes[key]

    def glance(self, spec: VictimSpec) -> Made:
        """The attack of ``spec`` after a few steps; untrained where it only changes images and trains honestly."""
        attack, data = spec.make_attack(), toy()
        if not isinstance(attack, DataPoisoning) or type(attack).implant is not DataPoisoning.implant:
            return carry_out(spec, data)
        trigger = attack.make_trigger(data.image_size, spec.seed)
        implanted = Implanted(self.untrained, trigger, attack.poison(data.train, data.num_classes, spec.seed))
        return Made(attack, data, implanted, attack.triggered_test(trigger, data.test, data.num_classes))

    @cached_property
    def untrained(self) -> Classifier:
        """A model that no attack has touched."""
        return make_trainer(self.spec(), toy(), CPU, seed=0).fresh_model()
