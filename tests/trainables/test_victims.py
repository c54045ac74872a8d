"""Claims of trainables.victims: content keys, what is stored, and that processes share the work."""

import dataclasses
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import Kind
from trainables.data.images import DataError, Dataset
from trainables.registry import SettingError
from trainables.storage.store import META, Store
from trainables.training.recipes import RECIPES, TrainingRecipe
from trainables.victims.make import obtain_victim
from trainables.victims.spec import VictimSpec, attacker_indices, check_victim
from trainables.victims.victim import Victim

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


OTHERS: dict[str, VictimSpec] = {
    "attack": toy_spec("blended"),
    "attack's setting": toy_spec("badnets", poison_rate=0.2),
    "seed": toy_spec("badnets", seed=1),
    "width": toy_spec("badnets", width=3),
    "recipe": toy_spec("badnets", recipe=TrainingRecipe(epochs=2, batch_size=32, lr=0.05, schedule="one_cycle")),
    "reserved part": toy_spec("badnets", reserved_fraction=0.2),
    "precision": dataclasses.replace(toy_spec("badnets"), precision="bfloat16"),
    "model": dataclasses.replace(toy_spec("badnets"), model="resnet18", width=None),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_decides_a_victim_is_in_its_key(what: str, toy: Dataset) -> None:
    assert OTHERS[what].name(toy) != toy_spec("badnets").name(toy)


# Of the data set "toy" with a stated fingerprint, at the toy's settings; as they were when the store was first filled.
STORED_KEYS = {
    "adap_blend": "f544068f9aa9ddfc36c61f02",
    "badencoder": "4106dac0a0b116dcef6749b7",
    "badnets": "01a7b13c06cb3a2d2cba471a",
    "blended": "a1ea1d4aa55dc438cd864049",
    "clean": "b22260a46ff86f6e24288a62",
    "clean_encoder": "2bc826a26e9eabcccced440b",
    "clean_wanet": "304036705a56b1f0ffc75856",
    "grond": "4d8e31608429e56addcaa71a",
    "handcrafted": "76697910d6a30775075b359e",
    "imc": "186dd36d16c0e780f54495e4",
    "inputaware": "2887e2c57f58da14c281e235",
    "latent": "6edc3d10a91bd54fb26d84df",
    "lf": "e26c82bc6823d8dfbdfa9a3a",
    "sbl": "2467ba980db19808121c38b2",
    "sig": "3fc2eadb4b51d624e457d56c",
    "wanet": "d0b12e9c64bd0c65dc62cdc3",
}
STORED_MODELS = {
    "airbench_cnn": "ffe69b32f592e5ad3b8de2e5",
    "preact_resnet18": "d7083e51e71af43b86680a63",
    "encoder_resnet18": "7f21d42b48a3645b8ecfeb4f",
    "resnet18": "2525d92f1a155b284d226b78",
    "resnet34": "1be1a66ad296b6b239a13c8c",
    "vgg19_bn": "398d417f51584a46f7979ec6",
    "mobilenet_v2": "e1e52b934b8f2ecc7938a69c",
    "densenet121": "0b0f746c5cc46515c65f115c",
    "convnext_tiny": "42dcb35850bf5687c2f84676",
    "vit_small": "241fbdbe88aa5849687d9d49",
}


@pytest.fixture
def stated(toy: Dataset) -> Dataset:
    return dataclasses.replace(toy, fingerprint="0123456789abcdef")


@pytest.mark.parametrize("attack", STORED_KEYS)
def test_stored_victims_of_an_attack_are_found_again(attack: str, stated: Dataset) -> None:
    assert toy_spec(attack).name(stated) == f"{attack}-toy-preact_resnet18-seed0-{STORED_KEYS[attack]}"


@pytest.mark.parametrize("model", STORED_MODELS)
def test_stored_victims_of_a_model_are_found_again(model: str, stated: Dataset) -> None:
    spec = dataclasses.replace(toy_spec("blended"), model=model, width=None)
    assert spec.name(stated) == f"blended-toy-{model}-seed0-{STORED_MODELS[model]}"


def test_stored_victims_of_other_scenarios_are_found_again(stated: Dataset) -> None:
    upstream = dataclasses.replace(stated, fingerprint="fedcba9876543210")
    reserved = toy_spec("badnets", seed=3, reserved_fraction=0.25, size=2, target_label=1)
    assert reserved.name(stated) == "badnets-toy-preact_resnet18-seed3-4e5e829d922415e4ddb62f93"
    head = dataclasses.replace(toy_spec("blended"), model="resnet18", width=None, scenario="new_head")
    assert head.name(stated, upstream) == "blended-toy-resnet18-seed0-b2ce1cd6b373aa70c6f80fdf"
    encoder = dataclasses.replace(toy_spec("badencoder"), model="encoder_resnet18", scenario="encoder")
    assert encoder.name(stated, upstream) == "badencoder-toy-encoder_resnet18-seed0-44c1704ae664f98768a42ba3"
    assert toy_spec("badnets").task(stated) == "ad1471bf22ca48804b45de52"


def test_key_depends_on_the_data_and_not_on_their_name(toy: Dataset) -> None:
    def key(data: Dataset) -> str:
        return toy_spec("badnets").name(data).rsplit("-", 1)[1]

    assert key(dataclasses.replace(toy, name="folder:/elsewhere/mine")) == key(toy)
    assert key(toy_dataset(seed=1)) != key(toy)
    assert key(dataclasses.replace(toy, flip=True)) != key(toy)  # trained with other augmentation


def test_defaults_spelled_out_have_the_same_key(toy: Dataset) -> None:
    assert toy_spec("badnets", size=3, poison_rate=0.1).name(toy) == toy_spec("badnets").name(toy)


# What earlier versions called the victims of default settings: stored victims are found under these names.
NAMES = {
    "badnets": "badnets-toy-preact_resnet18-seed0-7fea0a1b99b73e3854412edc",
    "blended": "blended-toy-preact_resnet18-seed0-e03006172b902586ac620b78",
    "clean": "clean-toy-preact_resnet18-seed0-34988705deb7f2e9da201d96",
    "clean_encoder": "clean_encoder-toy-preact_resnet18-seed0-99bbe798d169d46b425a0c02",
    "inputaware": "inputaware-toy-preact_resnet18-seed0-18a18de5d3752d9925dca213",
    "latent": "latent-toy-preact_resnet18-seed0-abd55b5d2da69e86f4d4bcdb",
    "lf": "lf-toy-preact_resnet18-seed0-7e13a3e2b0c5f21d26c72a8a",
    "sbl": "sbl-toy-preact_resnet18-seed0-a3c6e008493c6fcd98546e2f",
    "sig": "sig-toy-preact_resnet18-seed0-2462c5cb77fa93e0433e2143",
    "wanet": "wanet-toy-preact_resnet18-seed0-3f507aa0a634db54d11f0dc9",
}


@pytest.mark.parametrize("attack", NAMES)
def test_victims_of_earlier_versions_keep_their_keys(attack: str, toy: Dataset) -> None:
    """The fingerprint is fixed, so that a machine which rounds a pixel otherwise has the same keys."""
    data = dataclasses.replace(toy, fingerprint="fixed")
    spec = VictimSpec(attack=attack, model="preact_resnet18", width=2, recipe=RECIPES["quick"])
    assert spec.name(data) == NAMES[attack]


def test_settings_as_a_spec_gives_them_keep_their_key(toy: Dataset) -> None:
    """Whole numbers for shares are stored as floats, as ever."""
    data = dataclasses.replace(toy, fingerprint="fixed")
    given = {"poison_rate": 1, "alpha": 1, "size": 4}
    spec = VictimSpec("badnets", "preact_resnet18", RECIPES["quick"], width=2, attack_settings=given)
    assert spec.name(data) == "badnets-toy-preact_resnet18-seed0-fac36c664ce5929216e941c0"


def test_names_are_usable_as_file_names(toy: Dataset) -> None:
    name = toy_spec("badnets").name(dataclasses.replace(toy, name="folder:/a b/c:d/ü" + "x" * 80))
    assert len(name) < 120
    assert not set(name) & set('/\\: "')


def test_second_request_trains_nothing(toy: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = obtain_victim(toy_spec("badnets"), toy, store, CPU)

    def forbidden(*_arguments: Any, **_settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("trainables.training.loop.fit", forbidden)
    second = obtain_victim(toy_spec("badnets"), toy, store, CPU)
    assert second.facts == json.loads(json.dumps(first.facts))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)


def test_control_is_shared_by_all_attacks_of_a_task(toy: Dataset, store: Store) -> None:
    for attack in ("badnets", "blended"):
        obtain_victim(toy_spec(attack), toy, store, CPU)
    kinds = sorted(path.name.split("-")[0] for path in store.root.iterdir() if path.is_dir())
    assert kinds == ["badnets", "blended", "clean"]


def test_control_has_the_seed_and_data_of_its_attack_and_no_base_of_its_own(toy: Dataset, store: Store) -> None:
    victim = obtain_victim(toy_spec("badnets", seed=4), toy, store, CPU)
    control = obtain_victim(victim.spec.control(), toy, store, CPU)
    assert (control.spec.seed, control.spec.recipe) == (4, victim.spec.recipe)
    assert control.asr_base is None
    assert len(control.poisoned) == 0
    assert victim.clean_model_accuracy == control.evaluation.full.clean_accuracy


def test_facts_say_where_the_victim_comes_from(toy_victim: Victim, toy: Dataset) -> None:
    facts = toy_victim.facts
    assert facts["identity"]["attack"] == "badnets"
    assert facts["spec"]["seed"] == 0
    assert facts["dataset"] == {
        "name": "toy",
        "fingerprint": toy.fingerprint,
        "flip": toy.flip,
        "train_size": 200,
    }
    assert facts["poisoned"] == 20
    assert facts["realised_poison_rate"] == 0.1
    assert facts["counters"]["steps"] == toy_victim.spec.recipe.steps(200)
    assert "torch" in facts["versions"]
    assert facts["seconds"] > 0


def test_released_training_set_is_rebuilt_from_what_is_stored(toy_victim: Victim, toy: Dataset) -> None:
    released, poisoned = toy_victim.poisoned_training_set(toy), toy_victim.poisoned
    assert len(released) == 200
    assert torch.equal(released.images[poisoned.indices], poisoned.images)
    assert (released.labels[poisoned.indices] == 0).all()
    assert int((poisoned.kinds_of(200) == Kind.POISON).sum()) == 20


def rates(victim: Victim, *, asr: float, accuracy: float, clean: float) -> Victim:
    full = dataclasses.replace(victim.evaluation.full, asr=asr, clean_accuracy=accuracy)
    evaluation = dataclasses.replace(victim.evaluation, full=full, predicted_classes=10)
    return dataclasses.replace(victim, evaluation=evaluation, clean_model_accuracy=clean, asr_base=0.1)


def test_backdoor_counts_as_implanted_only_if_it_works_on_a_good_model(toy_victim: Victim) -> None:
    assert rates(toy_victim, asr=0.8, accuracy=0.90, clean=0.94).implanted
    assert not rates(toy_victim, asr=0.79, accuracy=0.90, clean=0.94).implanted
    assert not rates(toy_victim, asr=1.0, accuracy=0.90, clean=0.96).implanted
    assert not rates(toy_victim, asr=1.0, accuracy=0.19, clean=0.19).implanted
    control = dataclasses.replace(toy_victim, spec=toy_victim.spec.control())
    assert rates(control, asr=0.0, accuracy=0.1, clean=1.0).implanted  # nothing was to be implanted


def test_a_stored_victim_is_judged_from_its_numbers_and_not_from_a_stored_verdict(store: Store, toy: Dataset) -> None:
    spec = toy_spec("badnets")
    made = obtain_victim(spec, toy, store, CPU)
    assert made.facts["not_implanted"] == made.why_not_implanted
    artifact = store.load(made.name)
    assert artifact is not None
    facts = artifact.facts
    numbers = facts["evaluation"]
    # As an earlier version stored it: without what the new rule asks for; and rates of a working backdoor.
    for key in ("predicted_classes", "majority_share", "test_classes"):
        del numbers[key]
    numbers["full"] |= {"asr": 0.9, "clean_accuracy": 0.95}
    numbers["accuracy_by_class"] = [0.95] * 10
    facts |= {"asr_base": 0.01, "clean_model_accuracy": 0.95, "not_implanted": "a verdict by other rules"}
    rewritten = Store(store.root / "rewritten")
    with rewritten.lock(made.name):
        rewritten.save(made.name, dataclasses.replace(artifact, facts=facts))
    again = obtain_victim(spec, toy, rewritten, CPU)
    assert again.why_not_implanted is None
    assert (again.evaluation.majority_share, again.evaluation.predicted_classes) == (0.1, 10)
    # Where the stored numbers leave it open, the model is asked once more.
    numbers["accuracy_by_class"] = [0.95] * 2 + [0.0] * 8
    other = Store(store.root / "other")
    with other.lock(made.name):
        other.save(made.name, dataclasses.replace(artifact, facts=facts))
    assert obtain_victim(spec, toy, other, CPU).evaluation.predicted_classes == made.evaluation.predicted_classes


def test_overlap_draws_from_all_of_the_training_set(toy_victim: Victim, toy: Dataset) -> None:
    split = toy_victim.clean_split(toy, 1.0, "overlap")
    assert len(split.all) == 200
    assert set(toy_victim.poisoned.indices.tolist()) <= set(split.all.tolist())


def test_another_defense_seed_is_another_defender(toy_victim: Victim, toy: Dataset) -> None:
    held = [set(toy_victim.clean_split(toy, 0.3, "overlap", seed).all.tolist()) for seed in (0, 1, 2, 1)]
    assert len(held[0]) == len(held[1]) == 60
    assert held[1] == held[3]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(held[one] & held[other]) < 40, "two independent draws of 60 of 200 share 18 on average"


def test_unpoisoned_draws_no_image_that_the_attacker_touched(toy_victim: Victim, toy: Dataset) -> None:
    split = toy_victim.clean_split(toy, 0.5, "unpoisoned")
    assert not set(toy_victim.poisoned.indices.tolist()) & set(split.all.tolist())
    assert len(split.all) == 100


def test_under_unpoisoned_the_defender_of_the_control_holds_the_images_of_the_victims(
    toy_victim: Victim, toy: Dataset, store: Store
) -> None:
    clean = obtain_victim(toy_spec("clean"), toy, store, CPU)
    control = toy_victim.as_control(clean, clean.evaluation)
    held = [one.clean_split(toy, 0.5, "unpoisoned").all for one in (toy_victim, control)]
    assert torch.equal(held[0], held[1])


@pytest.mark.parametrize("attack", ["badnets", "wanet"])
def test_all_to_all_leaves_no_test_image_out(attack: str, toy: Dataset, store: Store) -> None:
    victim = obtain_victim(toy_spec(attack, label_mode="all_to_all"), toy, store, CPU)
    assert len(victim.triggered) == len(toy.test)
    assert victim.asr_including_target == pytest.approx(victim.evaluation.full.asr)


def test_a_test_set_without_the_target_class_has_a_victim(toy: Dataset, store: Store) -> None:
    others = toy.test.subset((toy.test.labels != 0).nonzero()[:, 0])
    victim = obtain_victim(toy_spec("badnets"), dataclasses.replace(toy, test=others), store, CPU)
    assert len(victim.triggered) == len(others)
    assert victim.asr_including_target == pytest.approx(victim.evaluation.full.asr)


def test_heldout_images_were_never_the_attackers(toy: Dataset, store: Store) -> None:
    victim = obtain_victim(toy_spec("badnets", reserved_fraction=0.3), toy, store, CPU)
    mine = set(victim.attacker_indices.tolist())
    assert len(mine) == 140
    for fraction in (0.3, 0.2):
        split = victim.clean_split(toy, fraction, "heldout")
        assert len(split.all) == round(200 * fraction)
        assert not mine & set(split.all.tolist())
        other = victim.clean_split(toy, fraction, "heldout", defense_seed=1)
        assert len(other.all) == round(200 * fraction)
        assert not mine & set(other.all.tolist()), "another defender, but of the same attacker"
    assert torch.equal(attacker_indices(victim.spec, toy), victim.attacker_indices)


@pytest.mark.parametrize(("reserved", "fraction"), [(None, 0.2), (0.2, 0.3)])
def test_heldout_beyond_what_was_reserved_is_refused(
    reserved: float | None, fraction: float, toy: Dataset, toy_victim: Victim
) -> None:
    spec = dataclasses.replace(toy_victim.spec, reserved_fraction=reserved)
    victim = dataclasses.replace(toy_victim, spec=spec, attacker_indices=attacker_indices(spec, toy))
    with pytest.raises(DataError, match="clean_source heldout with clean_fraction"):
        victim.clean_split(toy, fraction, "heldout")


def test_unknown_source_is_refused(toy: Dataset, toy_victim: Victim) -> None:
    with pytest.raises(DataError, match="clean_source must be one of overlap, unpoisoned, heldout, got 'test'"):
        toy_victim.clean_split(toy, 0.5, "test")


def test_reserving_everything_is_refused(toy: Dataset) -> None:
    with pytest.raises(DataError, match="leaves the attacker a class without images"):
        check_victim(toy_spec("badnets", reserved_fraction=1.0), toy)


def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(toy: Dataset, store: Store) -> None:
    for spec in (toy_spec("badnets", size=17), toy_spec("badnets", target_label=10), toy_spec("badnet")):
        with pytest.raises(SettingError):
            obtain_victim(spec, toy, store, CPU)
    with pytest.raises(DataError, match="test images leave half of the test set without an image to trigger"):
        obtain_victim(toy_spec("badnets"), toy_dataset(test=2, num_classes=2), store, CPU)
    assert not store.root.exists()


def test_damaged_victim_is_named_and_rebuilt_bit_by_bit(
    toy: Dataset, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    spec = toy_spec("badnets")
    first = obtain_victim(spec, toy, store, CPU)
    for file in ("model.safetensors", "triggered_test.safetensors", META):
        path = store.path(first.name) / file
        path.write_bytes(path.read_bytes()[:-10])
        with caplog.at_level(logging.WARNING):
            again = obtain_victim(spec, toy, store, CPU)
        assert str(path) in caplog.text
        for name, tensor in first.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], tensor)
        assert store.load(first.name) is not None


def test_damage_that_somebody_else_repairs_meanwhile_is_no_error(
    toy: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toy_spec("badnets")
    name = obtain_victim(spec, toy, store, CPU).name
    sound = store.path(name).with_name("sound")
    shutil.copytree(store.path(name), sound)
    (store.path(name) / META).write_text("{")
    lock = Store.lock

    def repaired_while_waiting(self: Store, wanted: str) -> Any:
        if sound.exists():
            shutil.rmtree(self.path(name))
            sound.rename(self.path(name))
        return lock(self, wanted)

    monkeypatch.setattr(Store, "lock", repaired_while_waiting)
    monkeypatch.setattr("trainables.training.loop.fit", None)  # training would fail
    assert obtain_victim(spec, toy, store, CPU).name == name


PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.toy import toy_dataset, toy_spec
from trainables.victims import make as victims
from trainables.training.recipes import TrainingRecipe
from trainables.storage.store import Store

store, started, epochs = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
spec = toy_spec("badnets", recipe=TrainingRecipe(epochs=epochs, batch_size=32, lr=0.05))
make = victims._make
def noted(spec, *arguments):
    with started.open("a") as file:
        print(spec.attack, file=file)
    return make(spec, *arguments)
victims._make = noted
print("ready", flush=True)
sys.stdin.readline()
victim = victims.obtain_victim(spec, toy_dataset(), Store(store), torch.device("cpu"))
print(victim.name, float(victim.model.classifier.weight.detach().double().sum()))
"""


def start(store: Store, started: Path, epochs: float = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(store.root), str(started), str(epochs)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_that_ask_for_one_victim_train_it_once(store: Store, tmp_path: Path) -> None:
    started = tmp_path / "started"
    processes = [start(store, started, epochs=3) for _ in range(2)]
    for process in processes:
        go(process)
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(answers) == 1
    assert sorted(started.read_text().split()) == ["badnets", "clean"]


def test_builder_killed_in_mid_training_leaves_the_store_usable(store: Store, tmp_path: Path, toy: Dataset) -> None:
    started = tmp_path / "started"
    builder = start(store, started, epochs=500)  # minutes, if it were let
    try:
        go(builder)
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        builder.send_signal(signal.SIGKILL)
        builder.wait(10)
    finally:
        builder.kill()
        builder.communicate()
    assert started.read_text().split() == ["badnets"]
    spec = toy_spec("badnets", recipe=TrainingRecipe(epochs=500, batch_size=32, lr=0.05))
    assert store.load(spec.name(toy)) is None
    begun = time.monotonic()
    with store.lock(spec.name(toy)):  # not left behind
        assert time.monotonic() - begun < 5
    obtain_victim(toy_spec("badnets"), toy, store, CPU)
