"""The user's task and the attacker's: same task, another one under a new head, an encoder."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tests.toy import toy_dataset, toy_spec
from trainables import workbench
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource
from trainables.evaluation.conditions import Conditions
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.registry import SettingError
from trainables.scenarios import check_scenario, take_over
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.trial_result import TrialResult
from trainables.victims.make import make_trainer, obtain_victim
from trainables.victims.spec import VictimSpec, check_victim
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

CPU = torch.device("cpu")
RECIPE = TrainingRecipe(epochs=15, batch_size=32, lr=0.05, schedule="one_cycle")


@pytest.fixture(scope="module")
def downstream() -> Dataset:
    """Four of the attacker's ten shapes, drawn anew: another task of the same world."""
    return dataclasses.replace(toy_dataset(num_classes=4, train=240, test=120, seed=1), name="other")


def transfer(attack: str = "badnets", **settings: object) -> VictimSpec:
    return dataclasses.replace(toy_spec(attack, recipe=RECIPE, **settings), scenario="new_head")


@pytest.fixture(scope="module")
def taken_over(toy: Dataset, downstream: Dataset, toy_store: Store) -> Victim:
    return obtain_victim(transfer(), downstream, toy_store, CPU, toy)


@pytest.fixture
def bench(toy: Dataset, downstream: Dataset, toy_store: Store, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    data = {"toy": toy, "other": downstream}
    monkeypatch.setattr(workbench, "_load", lambda source: data[source.name])
    return Workbench(toy_store, CPU)


def run(bench: Workbench, defense: str, settings: dict[str, object], **cell: object) -> TrialResult:
    return bench.run(
        Cell(DataSource("other"), transfer(), defense, 0.5, upstream=DataSource("toy"), scenario="new-head", **cell),  # type: ignore[arg-type]
        settings,
    )


def test_only_the_head_differs_from_the_released_model(
    taken_over: Victim, toy: Dataset, toy_store: Store, downstream: Dataset
) -> None:
    released = obtain_victim(toy_spec("badnets", recipe=RECIPE), toy, toy_store, CPU)
    state = taken_over.model.state_dict()
    different = {
        name
        for name, old in released.model.state_dict().items()
        if old.shape != state[name].shape or not torch.equal(old, state[name])
    }
    assert different == {"classifier.weight", "classifier.bias"}
    assert taken_over.model.num_classes == downstream.num_classes == 4


def test_normalisation_of_the_attacker_is_kept(taken_over: Victim, toy: Dataset, toy_store: Store) -> None:
    other = dataclasses.replace(toy_dataset(num_classes=4, train=240, seed=2), mean=(0.1, 0.1, 0.1), name="tinted")
    model = obtain_victim(transfer(), other, toy_store, CPU, toy).model
    assert model.normalize.mean.flatten().tolist() == pytest.approx(list(toy.mean))


def test_new_head_has_learned_the_users_task(taken_over: Victim) -> None:
    # Chance is 0.25, and on 120 images 0.35 once in two hundred times. The encoder has 16 features and knows ten shapes
    # to 0.35, and logistic regression on it reaches 0.48; machines that round differently differ by some points.
    assert taken_over.evaluation.full.clean_accuracy > 0.35


def test_triggered_images_are_the_users_under_the_attackers_trigger(
    taken_over: Victim, downstream: Dataset, toy: Dataset, toy_store: Store
) -> None:
    released = obtain_victim(toy_spec("badnets", recipe=RECIPE), toy, toy_store, CPU)
    assert taken_over.trigger.settings() == released.trigger.settings()
    labels = downstream.test.labels
    assert torch.equal(taken_over.triggered.sources, (labels != 0).nonzero()[:, 0])
    changed = taken_over.triggered.images != downstream.test.images[taken_over.triggered.sources]
    assert bool(changed.flatten(1).any(1).all())


def test_attackers_model_is_trained_once_for_all_users(taken_over: Victim, toy: Dataset, toy_store: Store) -> None:
    name = toy_spec("badnets", recipe=RECIPE).name(toy)
    assert taken_over.facts["upstream"]["victim"] == name
    assert toy_store.path(name).is_dir()


def test_key_of_a_victim_depends_on_the_upstream_data(downstream: Dataset, toy: Dataset) -> None:
    other = toy_dataset(seed=3)
    names = {transfer().name(downstream, toy), transfer().name(downstream, other), toy_spec("badnets").name(downstream)}
    assert len(names) == 3


def test_backdoor_that_does_not_survive_the_new_head_is_a_result(taken_over: Victim) -> None:
    before = taken_over.facts["upstream"]
    assert taken_over.why_not_implanted == before["not_implanted"]
    assert taken_over.conditions == Conditions(**before["conditions"])
    assert taken_over.conditions.asr != taken_over.evaluation.full.asr


@pytest.mark.parametrize("released_is_stored", [True, False])
def test_a_taken_over_victim_of_an_earlier_version_is_judged_from_what_is_stored(
    released_is_stored: bool, taken_over: Victim, toy: Dataset, downstream: Dataset, toy_store: Store, tmp_path: Path
) -> None:
    """Then the verdict itself was stored, by other rules; the numbers are those of the model that was taken over."""
    old, store = toy_store.load(taken_over.name), Store(tmp_path / "store")
    assert old is not None
    upstream = {key: old.facts["upstream"][key] for key in ("name", "fingerprint", "victim", "rates")}
    facts = {**old.facts, "upstream": {**upstream, "implanted": not taken_over.implanted}}
    with store.lock(taken_over.name):
        store.save(taken_over.name, dataclasses.replace(old, facts=facts))
    if released_is_stored:
        shutil.copytree(toy_store.path(upstream["victim"]), store.path(upstream["victim"]))
    again = obtain_victim(transfer(), downstream, store, CPU, toy)
    if released_is_stored:
        assert again.conditions == taken_over.conditions
        assert again.why_not_implanted == taken_over.why_not_implanted
    assert (again.conditions.asr, again.conditions.asr_base is None) == (
        taken_over.conditions.asr,
        not released_is_stored,
    )


def test_victim_comes_back_from_the_store_as_it_was(
    taken_over: Victim, toy: Dataset, downstream: Dataset, toy_store: Store
) -> None:
    again = obtain_victim(transfer(), downstream, Store(toy_store.root), CPU, toy)
    assert again.evaluation == taken_over.evaluation
    model = copy.deepcopy(again.model)
    assert evaluate(model, downstream.test, again.triggered, precision="float32") == taken_over.evaluation


def test_defender_with_data_starts_from_a_fresh_head_and_others_from_the_trained_one(bench: Workbench) -> None:
    nothing = {"steps": 0}
    probe, fresh = run(bench, "ft", nothing), run(bench, "ft", nothing, fresh_head=True)
    before = probe.metrics["clean_accuracy_before"]
    assert probe.metrics["clean_accuracy"] == before
    assert fresh.metrics["clean_accuracy"] != before
    assert float(fresh.metrics["clean_accuracy"] or 0) < 0.5  # nobody has trained it yet
    assert run(bench, "none", {}, fresh_head=True).metrics["clean_accuracy"] == before


def test_control_is_the_clean_model_under_the_same_trigger(bench: Workbench, taken_over: Victim) -> None:
    row = run(bench, "none", {}, control=True).row()
    assert row["attack"] == "badnets"
    assert row["asr"] == row["asr_before"] == taken_over.asr_base
    assert row["clean_accuracy"] == taken_over.clean_model_accuracy
    assert row["scenario"] == "new-head"


def test_defense_that_needs_the_attackers_training_set_is_refused(bench: Workbench) -> None:
    with pytest.raises(DataError, match="needs the poisoned training set"):
        run(bench, "ac", {})


def test_head_is_trained_with_the_rest_fixed(toy: Dataset, downstream: Dataset, toy_victim: Victim) -> None:
    trainer = make_trainer(transfer(), downstream, CPU, seed=0)
    before = copy.deepcopy(toy_victim.model.state_dict())
    model = take_over(toy_victim.model, downstream.train, trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy_victim.model.state_dict().items())
    assert not model.training
    assert trainer.counters.forward_samples == len(downstream.train)  # the encoder runs once
    assert trainer.counters.backward_samples == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenario": "standalone"}, "has no upstream"),
        ({"scenario": "encoder"}, "attack badnets releases a classifier"),
        ({"reserved_fraction": 0.5}, "clean_source heldout means nothing"),
        ({"attack_settings": {"target_label": 11}}, "target_label must be below the number of classes"),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: dict[str, object], message: str, toy: Dataset, downstream: Dataset
) -> None:
    with pytest.raises((DataError, SettingError), match=message) as caught:
        check_victim(dataclasses.replace(transfer(), **change), downstream, toy)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_data_sets_that_do_not_fit_are_one_line(toy: Dataset) -> None:
    attack = transfer().make_attack()
    with pytest.raises(DataError, match="needs an upstream data set"):
        check_scenario("new_head", attack, toy, None)
    with pytest.raises(DataError, match="is also the upstream one"):
        check_scenario("new_head", attack, toy, toy)
    with pytest.raises(DataError, match="set image_size to 24"):
        check_scenario("new_head", attack, toy, toy_dataset(image_size=24))


def test_target_must_be_a_class_of_both_tasks(toy: Dataset, tmp_path: Path) -> None:
    small = dataclasses.replace(toy_dataset(num_classes=4, seed=5), name="four")
    with pytest.raises(SettingError, match=r"target_label must be below the number of classes \(4\)"):
        check_victim(transfer(target_label=7), small, toy)
