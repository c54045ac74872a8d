"""What is remembered: built once, the same for everybody, charged honestly."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from tests.toy import toy_spec
from trainables.data.images import Dataset
from trainables.models.classifier import Classifier
from trainables.storage.memo import Memo
from trainables.storage.store import Artifact, Store
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer

CPU = torch.device("cpu")
RECIPE = TrainingRecipe(epochs=1, batch_size=64, lr=0.01)


def bench(data: Dataset, memo: Memo | None = None, *, seed: int = 0, task: str = "task") -> Trainer:
    trainer = make_trainer(toy_spec("clean"), data, CPU, seed=seed)
    trainer.task = task
    if memo is not None:
        trainer.memo = memo
    return trainer


def retrain(trainer: Trainer, data: Dataset, **identity: object) -> Classifier:
    return trainer.remember_model(
        "retraining", identity, lambda: trainer.train_from_scratch(data.train, RECIPE, purpose="retraining")
    )


def test_a_second_trial_finds_the_same_model_without_training(toy: Dataset, tmp_path: Path) -> None:
    memo = Memo(Store(tmp_path))
    first, second = bench(toy, memo), bench(toy, memo)
    one, other = retrain(first, toy), retrain(second, toy)
    assert first.counters.steps == RECIPE.steps(200)
    assert first.reused == {}
    assert second.counters == Counters()
    assert list(second.reused.values()) == [first.counters]
    assert one is not other
    images = toy.test.images.float() / 255
    assert torch.equal(one(images), other(images))
    assert not one.training
    assert not other.training


def test_another_process_finds_it_on_disk(toy: Dataset, tmp_path: Path) -> None:
    first, second = bench(toy, Memo(Store(tmp_path))), bench(toy, Memo(Store(tmp_path)))
    one, other = retrain(first, toy), retrain(second, toy)
    assert second.counters.steps == 0
    images = toy.test.images.float() / 255
    assert torch.equal(one(images), other(images))


def test_what_is_remembered_does_not_depend_on_whether_it_was_reused(toy: Dataset, tmp_path: Path) -> None:
    memo = Memo(Store(tmp_path))
    retrain(bench(toy, memo), toy)
    reused, alone = retrain(bench(toy, memo), toy), retrain(bench(toy), toy)
    images = toy.test.images.float() / 255
    assert torch.equal(reused(images), alone(images))


def test_a_trial_that_asks_twice_does_not_call_its_own_work_reused(toy: Dataset, tmp_path: Path) -> None:
    trainer = bench(toy, Memo(Store(tmp_path)))
    for _ in range(2):
        retrain(trainer, toy)
    assert trainer.counters.steps == RECIPE.steps(200)
    assert len(trainer.made) == 1
    assert trainer.reused == {}


def test_other_settings_and_other_tasks_share_nothing(toy: Dataset, tmp_path: Path) -> None:
    memo = Memo(Store(tmp_path))
    retrain(bench(toy, memo), toy, kept="a")
    for trainer, kept in ((bench(toy, memo), "b"), (bench(toy, memo, task="another victim"), "a")):
        retrain(trainer, toy, kept=kept)
        assert trainer.counters.steps == RECIPE.steps(200)
        assert trainer.reused == {}


def test_nothing_outlives_a_bench_without_a_memo(toy: Dataset) -> None:
    for _ in range(2):
        trainer = bench(toy)
        retrain(trainer, toy)
        assert trainer.counters.steps == RECIPE.steps(200)


def test_what_comes_back_may_be_trained_further_without_harm(toy: Dataset, tmp_path: Path) -> None:
    memo = Memo(Store(tmp_path))
    images = toy.test.images.float() / 255
    model = retrain(bench(toy, memo), toy)
    before = model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(retrain(bench(toy, memo), toy)(images), before)


def test_a_damaged_file_is_named_and_built_again(
    toy: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    retrain(bench(toy, Memo(Store(tmp_path))), toy)
    (file,) = tmp_path.glob("*/tensors.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    trainer = bench(toy, Memo(Store(tmp_path)))
    retrain(trainer, toy)
    assert trainer.counters.steps == RECIPE.steps(200)
    assert str(file) in caplog.text


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> Artifact:
        raise ArithmeticError("no")

    memo = Memo(Store(tmp_path))
    with pytest.raises(ArithmeticError):
        memo.obtain("thing", fail)
    artifact, built = memo.obtain("thing", lambda: Artifact({"tensors": {"x": torch.ones(2)}}, {}))
    assert built
    assert torch.equal(artifact.tensors["tensors"]["x"], torch.ones(2))


def test_only_the_last_few_stay_in_memory() -> None:
    memo, built = Memo(keep=2), list[str]()

    def obtain(name: str) -> None:
        def build() -> Artifact:
            built.append(name)
            return Artifact({}, {})

        memo.obtain(name, build)

    for name in ("a", "b", "a", "c", "a"):
        obtain(name)
    assert built == ["a", "b", "c", "a"]


def _slow_build(root: Path) -> None:
    def build() -> Artifact:
        with (root / "builds").open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return Artifact({"tensors": {"x": torch.ones(1)}}, {})

    _, built = Memo(Store(root / "store")).obtain("thing", build)
    with (root / "told").open("a") as file:
        file.write(f"{built}\n")


def test_two_processes_that_ask_at_once_build_once(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_slow_build, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["False", "True"]
    assert (tmp_path / "builds").read_text().splitlines() == ["built"]
