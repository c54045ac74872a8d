"""Lengths in steps and one rule for batches: what `trainables.defenses.base` promises of every method alike."""

import copy
import dataclasses
from typing import Any

import pytest
import torch

from superft.testing.defense_subject import Subject
from trainables.data.images import Dataset
from trainables.defenses.base import (
    DEFENSES,
    CleanData,
    PoisonedData,
    images_per_step,
    published_steps,
    training_work,
)
from trainables.registry import SettingError
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

ON_CLEAN_DATA = [name for name in DEFENSES.names() if DEFENSES.get(name).owns is CleanData]
WITH_BATCHES = [name for name in DEFENSES.names() if hasattr(DEFENSES.get(name), "batch_size")]


@pytest.mark.parametrize(
    ("epochs", "images", "batch_size", "steps"),
    [(100, 2500, 256, 1000), (10, 1000, 128, 80), (20, 500, 128, 80), (1, 5000, 100, 50), (0.5, 2500, 256, 5)],
)
def test_a_published_length_is_its_epochs_over_the_published_set(
    epochs: float, images: int, batch_size: int, steps: int
) -> None:
    assert published_steps(epochs=epochs, images=images, batch_size=batch_size) == steps


@pytest.mark.parametrize(
    ("batch_size", "n", "batch"),
    [(256, 2500, 256), (256, 1024, 256), (256, 1023, 255), (256, 117, 29), (64, 117, 29), (16, 117, 16), (1, 100, 1)],
)
def test_a_batch_is_the_published_one_or_a_quarter_of_the_set(batch_size: int, n: int, batch: int) -> None:
    assert images_per_step(batch_size, n) == batch


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (2, 2), (3, 2), (7, 2), (8, 2), (12, 3)])
def test_a_batch_has_two_images_where_there_are_two(n: int, batch: int) -> None:
    assert images_per_step(256, n) == batch


@pytest.mark.parametrize("name", ON_CLEAN_DATA)
def test_a_defense_on_clean_data_makes_as_many_steps_on_any_set(name: str) -> None:
    defense = DEFENSES.create(name)
    assert len({defense.plan(n, n).steps for n in (40, 117, 900, 2500, 50_000)}) == 1
    assert not {"epochs", "rounds"} & {field.name for field in dataclasses.fields(defense)}


@pytest.mark.parametrize("name", WITH_BATCHES)
def test_the_row_tells_the_batch_that_the_rule_allows(
    name: str, toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(name, toy_victim, toy)
    run, _ = subject.run(subject.create(batch_size=10**6))
    assert run.trainer.batch == subject.n_owned // 4


def test_what_trains_nothing_has_no_batch(toy: Dataset, toy_victim: Victim) -> None:
    for name, settings in (("none", {}), ("clp", {}), ("ft", {"scope": "bn_statistics"}), ("ft", {"steps": 0})):
        subject = Subject(name, toy_victim, toy)
        assert subject.run(DEFENSES.create(name, settings))[0].trainer.batch is None


def test_a_batch_outlives_the_training_that_was_found_ready_made(toy: Dataset, trainer: Trainer) -> None:
    def build() -> dict[str, torch.Tensor]:
        model = trainer.fresh_model()
        trainer.fit(model, toy.train, steps=1, lr_at=lambda _step: 0.01, batch_size=24)
        return dict(model.state_dict())

    trainer.remember("training", {}, build)
    assert trainer.batch == 24
    later = dataclasses.replace(trainer, counters=Counters(), batch=None, made=[], reused={})
    later.remember("training", {}, build)
    assert (later.batch, later.counters.steps) == (24, 0)
    trainer.fit(trainer.fresh_model(), toy.train, steps=1, lr_at=lambda _step: 0.01, batch_size=8)
    assert trainer.batch == 24, "the largest"


@pytest.mark.parametrize(
    ("defense", "old", "new"),
    [
        ("ft", "epochs", "give steps"),
        ("ft_sam", "epochs", "give steps"),
        ("fst", "epochs", "give steps"),
        ("fp", "epochs", "give steps"),
        ("nad", "te_epochs", "give teacher_steps"),
        ("nc", "mask_epochs", "give mask_steps"),
        ("sau", "rounds", "give steps"),
        ("ibau", "rounds", "round_steps"),
        ("awm", "epochs", "give round_steps"),
        ("rnp", "unlearn_epochs", "give unlearn_steps"),
        ("rnp", "max_threshold", "nothing above threshold"),
        ("anp", "max_threshold", "nothing above threshold"),
        ("scratch", "lr", "lr_max1"),
    ],
)
def test_a_setting_that_is_gone_says_what_took_its_place(defense: str, old: str, new: str) -> None:
    with pytest.raises(SettingError, match=rf"^unknown setting defense\.{defense}\.{old}: .*{new}"):
        DEFENSES.create(defense, {old: 1})


def test_what_replaces_a_setting_is_a_setting() -> None:
    for name in DEFENSES.names():
        cls = DEFENSES.get(name)
        fields = {field.name for field in dataclasses.fields(cls)}
        for old, hint in cls.replaced.items():
            assert old not in fields
            assert any(field in hint for field in fields), hint


def test_detectors_count_epochs_since_their_set_is_the_victims() -> None:
    for name in DEFENSES.names():
        if DEFENSES.get(name).owns is PoisonedData:
            plans = [DEFENSES.create(name).plan(n) for n in (1024, 2048, 50_000)]
            assert plans[0].steps < plans[1].steps < plans[2].steps


def test_work_is_never_more_than_the_set_per_step() -> None:
    assert training_work(3, 50, 20) == Counters(steps=3, forward_samples=60, backward_samples=60)


def test_short_run_of_fine_tuning_takes_the_steps_it_says(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    data: Any = CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 120)))
    found = DEFENSES.create("ft", {"steps": 7}).repair(copy.deepcopy(toy_victim.model), data, trainer)
    assert len(found.history.lr) == 7
    assert trainer.counters == Counters(steps=7, forward_samples=175, backward_samples=175)
