"""Claims of trainables.evaluation.curve: a repair is measured along its way and is none the worse for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch

from superft.testing.defense_checks import reachable
from tests.toy import toy_dataset
from trainables.attacks.base import PoisonedSamples
from trainables.attacks.triggers import Trigger
from trainables.columns import CIRCUMSTANCES
from trainables.data.images import Dataset, TriggeredSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, CleanData, Defense, Repair
from trainables.evaluation.curve import Curve
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training.loop import Counters, DivergedError
from trainables.training.trainer import Trainer
from trainables.training.watch import Moment, watching
from trainables.trial import run_trial
from trainables.trial_result import TrialResult
from trainables.victims.victim import Victim

CPU = torch.device("cpu")
# What a curve alone changes of a row: when, how fast, and how much was measured.
BESIDE = {*CIRCUMSTANCES, "eval_forward_samples"} - {"forward_samples", "backward_samples", "steps", "flags"}
HELD = 0.3  # of the toy's 20 images per class: 4 for training and 2 set apart, so 40


def run(
    victim: Victim, toy: Dataset, defense: str, curve: Any = None, memo: Memo | None = None, **settings: Any
) -> Any:
    cell = Cell(DataSource("toy"), victim.spec, defense, clean_fraction=HELD)
    return run_trial(cell, settings, dataset=toy, victim=victim, device=CPU, curve=curve, memo=memo)


def shown(result: TrialResult) -> dict[str, Any]:
    return {name: value for name, value in result.row().items() if name not in BESIDE}


@pytest.mark.parametrize("every", ["epoch", 3])
@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        ("ft", {"steps": 12, "batch_size": 10, "lr": 0.05}),
        ("super_ft", {"iterations": 4, "batch_size": 10}),
        ("nad", {"teacher_steps": 4, "steps": 6}),
        ("ft_sam", {"steps": 5, "batch_size": 10}),
        ("scratch", {"iterations": 3}),
    ],
)
def test_a_repair_ends_the_same_with_a_curve_and_without(
    defense: str, settings: dict[str, Any], every: Any, toy_victim: Victim, toy: Dataset
) -> None:
    plain = run(toy_victim, toy, defense, **settings)
    followed = run(toy_victim, toy, defense, every, **settings)
    assert plain.curve == []
    assert len(followed.curve) > 2
    assert shown(followed) == shown(plain)
    assert followed.eval_forward_samples > plain.eval_forward_samples


def test_points_stand_at_step_0_then_every_so_often_and_at_the_end(toy_victim: Victim, toy: Dataset) -> None:
    found = run(toy_victim, toy, "ft", 5, steps=12, batch_size=10, lr=0.05)
    assert [point["step"] for point in found.curve] == [0, 5, 10, 12]
    assert all(point["kept"] for point in found.curve)
    assert found.curve[0]["asr"] == toy_victim.evaluation.full.asr
    assert found.curve[0]["clean_accuracy_report"] == toy_victim.evaluation.report.clean_accuracy
    for name in ("asr", "clean_accuracy", "robust_accuracy", "asr_report", "clean_accuracy_report"):
        assert found.curve[-1][name] == found.row()[name]


def test_a_point_is_what_a_repair_that_ends_there_comes_to(toy_victim: Victim, toy: Dataset) -> None:
    long = run(toy_victim, toy, "ft", 4, steps=12, batch_size=10, lr=0.05, schedule="constant")
    short = run(toy_victim, toy, "ft", steps=8, batch_size=10, lr=0.05, schedule="constant")
    at_8 = next(point for point in long.curve if point["step"] == 8)
    assert (at_8["asr"], at_8["clean_accuracy"]) == (short.row()["asr"], short.row()["clean_accuracy"])


def test_an_epoch_is_a_pass_over_the_images_of_the_defender(toy_victim: Victim, toy: Dataset) -> None:
    found = run(toy_victim, toy, "ft", "epoch", steps=12, batch_size=9, lr=0.05)
    (images,) = {round(point["step"] * 9 / point["passes"]) for point in found.curve if point["step"]}
    passes = [12 * 9 // images, *(step for step in range(1, 13) if step * 9 // images > (step - 1) * 9 // images)]
    assert [point["step"] for point in found.curve] == sorted({0, *passes[1:], 12})
    assert passes[0] >= 2


def test_steps_without_images_of_an_own_training_leave_start_and_end(toy_victim: Victim, toy: Dataset) -> None:
    assert [point["step"] for point in run(toy_victim, toy, "clp", 1).curve] == [0]
    assert [point["step"] for point in run(toy_victim, toy, "none", 1).curve] == [0]


def test_a_teacher_is_no_part_of_the_repair(toy_victim: Victim, toy: Dataset) -> None:
    points = run(toy_victim, toy, "nad", 1, teacher_steps=3, steps=3).curve
    assert {point["kept"] for point in points} == {True, False}
    kept = [point["step"] for point in points if point["kept"]]
    others = [point["step"] for point in points if not point["kept"]]
    assert max(others) < min(step for step in kept if step)


@pytest.fixture
def probe() -> Iterator[Any]:
    yield lambda cls: DEFENSES.register("probe")(dataclasses.dataclass(frozen=True)(cls))
    DEFENSES.remove("probe")


def test_the_defense_reaches_no_test_image_while_it_is_measured(probe: Any, toy_victim: Victim) -> None:
    received: list[object] = []

    class Looks(Defense):
        owns: ClassVar[Any] = CleanData

        def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
            return Counters()

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            def look(step: int) -> None:
                received.append((self, model, assets, trainer))

            trainer.fit(model, assets.train, steps=2, lr_at=lambda step: 0.01, after_step=look)
            return Repair(model)

    probe(Looks)
    toy = toy_dataset()
    found = run(toy_victim, toy, "probe", 1)
    assert [point["step"] for point in found.curve] == [0, 1, 2]
    assert len(received) == 2
    for thing, path in reachable(tuple(received)):
        assert not isinstance(thing, (Victim, Dataset, Cell, Trigger, PoisonedSamples, TriggeredSet, Curve)), path
        assert not any(thing is secret for secret in (toy.test, toy.test.images)), path


def test_what_other_trials_may_find_ready_made_is_not_watched(
    probe: Any, toy_victim: Victim, toy: Dataset, tmp_path: Any
) -> None:
    class Remembers(Defense):
        owns: ClassVar[Any] = CleanData

        def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
            return Counters()

        def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
            def build() -> Classifier:
                made = trainer.fresh_model()
                trainer.fit(made, assets.train, steps=3, lr_at=lambda step: 0.01, purpose="made")
                return made

            return Repair(trainer.remember_model("made", {}, build))

    probe(Remembers)
    memo = Memo(Store(tmp_path))
    first, second = (run(toy_victim, toy, "probe", 1, memo=memo) for _ in range(2))
    assert second.flags == ["made_reused"]
    stages = [[point["stage"] for point in found.curve] for found in (first, second)]
    assert stages == [["start", "end"], ["start"]]  # the second repair made no step


def test_a_model_that_is_lost_on_the_way_is_the_worst_point(toy_victim: Victim, toy: Dataset) -> None:
    found = run(toy_victim, toy, "ft", 1, steps=6, batch_size=10, lr=1e30)
    assert "finite" in str(found.error)
    lost = [point for point in found.curve if point.get("diverged")]
    assert found.curve[-1] in lost
    assert {(point["asr"], point["clean_accuracy"]) for point in lost} == {(1.0, 0.0)}


def test_nobody_watches_outside_the_block(toy: Dataset, trainer: Trainer) -> None:
    seen: list[Moment] = []
    model = trainer.fresh_model()
    with watching(seen.append):
        trainer.fit(model, toy.train, steps=2, lr_at=lambda step: 0.01, batch_size=50)
    trainer.fit(model, toy.train, steps=2, lr_at=lambda step: 0.01, batch_size=50)
    assert [(moment.step, moment.total, moment.batch, moment.images) for moment in seen] == [
        (0, 1, 50, 200),
        (1, 2, 50, 200),
    ]


def test_time_to_measure_is_counted_and_every_is_checked(toy_victim: Victim, toy: Dataset) -> None:
    def measure(model: Classifier) -> Any:
        if len(waited) > 1:
            raise DivergedError("lost")
        return evaluate(model, toy.test, toy_victim.triggered)

    waited: list[int] = []
    curve = Curve(2, measure, lambda: waited.append(1))
    curve.begin(toy_victim.model)
    curve.look(Moment(toy_victim.model, "fit", 0, 1, 10, 40))
    curve.look(Moment(toy_victim.model, "fit", 1, 2, 10, 40))
    assert len(waited) == 2
    assert curve.seconds > 0
    assert [point.get("diverged", False) for point in curve.end(None, 3, None)] == [False, True, True]
    with pytest.raises(ValueError, match="steps >= 1"):
        Curve(0, measure)
