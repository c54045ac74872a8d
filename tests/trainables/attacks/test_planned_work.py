"""What an attack says its work will be, beside what is counted when it is carried out, over its settings and sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from superft.testing.attack_subject import carry_out
from superft.testing.toy import toy_dataset, toy_spec
from superft.testing.toy_victims import CPU
from trainables.attacks.base import ATTACKS
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import make_trainer

# No batch divides the 83 images, and the second recipe's is larger than all of them. 0.25 and 0.5 of a batch of 12 are
# whole numbers, so that chance has nothing to decide.
SHORT = TrainingRecipe(epochs=1.5, batch_size=12, lr=0.01)
ONE_BATCH = TrainingRecipe(epochs=2, batch_size=128, lr=0.01)
EXACT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("clean", {}),
    ("badnets", {}),
    ("adap_blend", {"poison_rate": 0.1, "cover_rate": 0.1}),
    ("wanet", {}),
    ("clean_wanet", {"augmentation": "sample"}),
    ("lf", {"source": "random"}),
    ("grond", {}),
    ("grond", {"u": None, "upgd_batch": 500}),
    ("latent", {}),
    ("latent", {"refresh_mean": True, "epochs": 3.0, "images_per_class": 5}),
    ("latent", {"trigger_epochs": 0.0}),
    ("latent", {"form": "transfer"}),
    ("latent", {"form": "transfer", "epochs": 0.5, "images_per_class": 2}),
    ("sbl", {"user_share": 0.3}),
    ("sbl", {"variant": "naive", "user_epochs": 3.0, "user_batch_size": 7}),
    ("sbl", {"variant": "anchoring"}),
    ("handcrafted", {"form": "head", "images": 40}),
    ("badencoder", {"inject_batch": 50}),
    ("badencoder", {"tune": "classifier"}),
    ("clean_encoder", {}),
    ("clean_encoder", {"tune": "classifier"}),
)
# What they plan is the most; here it is also what happens, because nothing is left to chance.
CERTAIN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("imc", {"poison_rate": 0.2, "warm_start_steps": 3}),
    ("imc", {"poison_rate": 1 / 3, "epochs": 2.5}),
    ("latent", {"poison_rate": 0.2, "refresh_mean": True}),
    ("inputaware", {"poison_rate": 0.25}),
    ("inputaware", {"poison_rate": 0.25, "cross_ratio": 3.0, "mask_epochs": 1.0}),
    ("inputaware", {"poison_rate": 0.5, "cross_ratio": 0.0}),
)
AT_MOST: tuple[tuple[str, dict[str, Any]], ...] = (
    ("imc", {}),
    ("inputaware", {"poison_rate": 0.02}),
    ("latent", {"poison_rate": 0.1}),
    ("lf", {"deepfool_batch": 4}),
    ("sbl", {"sft_aware": True, "sft_every": 2, "user_share": 0.3, "user_batch_size": 8}),
    ("sbl", {"sft_aware": True, "sft_steps": 4, "sft_every": 1, "user_share": 0.3}),
    ("handcrafted", {}),
    ("handcrafted", {"keep": 0.05, "images": 30}),
)


def told_and_counted(attack: str, settings: dict[str, Any], recipe: TrainingRecipe) -> tuple[Counters, Counters]:
    data, spec = toy_dataset(train=83), toy_spec(attack, recipe=recipe, **settings)
    told = spec.make_attack().planned_work(data.train.labels, recipe, None)
    return told, carry_out(spec, data).work


@pytest.mark.parametrize(("attack", "settings"), EXACT)
def test_an_exact_plan_is_what_is_counted(attack: str, settings: dict[str, Any]) -> None:
    assert toy_spec(attack, **settings).make_attack().plan_is_exact
    told, counted = told_and_counted(attack, settings, SHORT)
    assert counted == told


@pytest.mark.parametrize(("attack", "settings"), CERTAIN)
def test_the_most_is_what_is_counted_where_chance_has_nothing_to_decide(attack: str, settings: dict[str, Any]) -> None:
    assert not toy_spec(attack, **settings).make_attack().plan_is_exact
    told, counted = told_and_counted(attack, settings, SHORT)
    assert counted == told


@pytest.mark.parametrize(("attack", "settings"), AT_MOST)
def test_otherwise_no_more_is_counted(attack: str, settings: dict[str, Any]) -> None:
    told, counted = told_and_counted(attack, settings, SHORT)
    for item in dataclasses.fields(told):
        assert getattr(counted, item.name) <= getattr(told, item.name), item.name
    assert counted.steps > 0


@pytest.mark.parametrize("attack", ["badnets", "grond", "latent", "sbl", "imc", "inputaware", "handcrafted", "lf"])
def test_batches_are_cut_to_the_images_there_are(attack: str) -> None:
    told, counted = told_and_counted(attack, {}, ONE_BATCH)
    assert counted.steps == told.steps
    assert counted.backward_samples <= told.backward_samples <= 1.1 * counted.backward_samples


@pytest.mark.parametrize("attack", ["badencoder", "clean_encoder"])
def test_an_encoder_is_trained_on_the_upstream_images_where_there_are_some(attack: str) -> None:
    data, spec = toy_dataset(train=83), toy_spec(attack, recipe=SHORT)
    trainer = make_trainer(spec, data, CPU, seed=0)
    trainer.upstream = toy_dataset(train=130, seed=5).train.images
    spec.make_attack().implant(data.train, trainer, SHORT)
    assert spec.make_attack().planned_work(data.train.labels, SHORT, 130) == trainer.counters


def test_what_is_handed_out_ready_made_is_trained_by_nobody() -> None:
    imported = ATTACKS.create("imported", {"path": "nowhere.pt"})
    assert imported.planned_work(torch.zeros(10, dtype=torch.int64), SHORT) == Counters()
