"""Claims that only the author of a method can make: how far its trigger reaches, how well it works, what strength 0 is.

They go into the method's own test file, beside its suite.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from superft.testing import defense_subject
from superft.testing.attack_subject import CPU
from superft.testing.toy import toy_dataset, toy_spec
from trainables.attacks.base import Attack, DataPoisoning
from trainables.attacks.triggers import stamp
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import obtain_victim

# The 2-seed gates: long enough for a faint trigger at 16 pixels.
GATE = TrainingRecipe(epochs=25, batch_size=32, lr=0.05, schedule="one_cycle")


def assert_changes_at_most(
    attack: Attack, *, levels: int, where: Tensor | None = None, image_size: int = 16, count: int = 1000
) -> None:
    """The declared bound: no pixel of ``count`` images moves by more than ``levels``, and none outside ``where``.

    Args:
        levels: largest change in grey levels, 0..255.
        where: boolean mask (H, W) of the pixels that may change; None: all.
    """
    assert isinstance(attack, DataPoisoning)
    images = toy_dataset(train=count, test=10, image_size=image_size).train.images
    moved = (stamp(attack.make_trigger(image_size, 0), images).int() - images.int()).abs()
    assert int(moved.max()) <= levels
    if where is not None:
        assert int(moved[..., ~where].max()) == 0


def assert_gate(
    name: str, *, asr: float, asr_base: float = 0.05, seeds: tuple[int, ...] = (0, 1), **settings: Any
) -> None:
    """The toy gate: on every seed the attack works, the model is good, and a clean model does not obey the trigger."""
    data = toy_dataset(train=2000, test=600)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            spec = toy_spec(name, seed=seed, width=8, recipe=GATE, **settings)
            victim = obtain_victim(spec, data, Store(Path(folder)), CPU)
            found = victim.evaluation.full
            assert found.clean_accuracy > 0.9, f"seed {seed}"
            assert found.asr > asr, f"seed {seed}"
            assert victim.asr_base is not None
            assert victim.asr_base < asr_base, f"seed {seed}"
            assert victim.implanted


def assert_identity(subject: defense_subject.Subject, **settings: Any) -> None:
    """Zero strength: at these settings of a defense the victim comes back bit-identical and nothing was trained."""
    run, _ = subject.run(subject.create(**settings))
    assert defense_subject.same(run.state, dict(subject.victim.model.state_dict()))
    assert run.trainer.counters.backward_samples == 0
