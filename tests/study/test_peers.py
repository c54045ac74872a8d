"""A file of BackdoorBench's form goes in as a victim, takes part in a trial, and comes out unchanged in its numbers."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from study.cli import main
from study.run.evaluate_weights import stored_victim
from study.run.one_trial import run_single
from study.run.peers import export_backdoorbench, import_victim
from study.spec.yaml_io import SpecError
from tests.mutants import mutants
from trainables.attacks.base import Kind
from trainables.attacks.peer import read_peer
from trainables.attacks.peer_file import their_name
from trainables.data.images import DataError, Dataset
from trainables.data.load import load_dataset
from trainables.models.build import build_model
from trainables.registry import SettingError
from trainables.storage.store import Store

WIDTH = 4


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=16)


def part(folder: Path, name: str, data: Any, indices: list[int]) -> dict[str, Any]:
    told = {}
    for index in indices:
        label = int(data.labels[index])
        pixels = data.images[index].permute(1, 2, 0).numpy().copy()
        pixels[-3:, -3:] = 255
        file = folder / f"{name}_dataset" / str(label) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        told[np.int64(index)] = {"path": f"./record/x/{name}_dataset/{label}/{index}.png", "other_info": [0, label]}
    indicator = np.zeros(len(data))
    indicator[indices] = 1.0
    order = np.arange(len(data)) if name == "bd_train" else np.array(indices)
    return {
        "bd_data_container": {"save_folder_path": "x", "data_dict": told, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": order,
        "poison_indicator": indicator,
        "save_folder_path": "x",
    }


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A file as that program writes it, of an untrained model."""
    folder = tmp_path_factory.mktemp("peer")
    generator = torch.Generator().manual_seed(1)
    model = build_model("preact_resnet18", num_classes=10, width=WIDTH, image_size=16, generator=generator)
    state = {f"module.{their_name(k)}": v for k, v in model.state_dict().items() if not k.startswith("normalize.")}
    tested = (digits.test.labels != 0).nonzero()[::16, 0].tolist()
    content = {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": collections.OrderedDict(state),
        "data_path": "./data/digits",
        "img_size": (16, 16, 3),
        "clean_data": "digits",
        "bd_train": part(folder, "bd_train", digits.train, list(range(0, 60, 2))),
        "bd_test": part(folder, "bd_test", digits.test, tested),
    }
    torch.save(content, folder / "attack_result.pt")
    return folder / "attack_result.pt"


def changed(peer: Path, to: Path, **other: Any) -> Path:
    """The file with other values at some keys; None takes the key out."""
    content = torch.load(peer, weights_only=False)  # our own file, of a moment ago
    content.update(other)
    to.mkdir(exist_ok=True)
    for name in ("bd_train_dataset", "bd_test_dataset"):
        if not (to / name).exists():
            shutil.copytree(peer.parent / name, to / name)
    torch.save({key: value for key, value in content.items() if value is not None}, to / peer.name)
    return to / peer.name


def test_a_file_goes_in_and_comes_out_unchanged_in_its_numbers(peer: Path, digits: Dataset, tmp_path: Path) -> None:
    first = import_victim(peer, width=WIDTH, store=tmp_path / "store", device="cpu")
    out = export_backdoorbench(first.name, tmp_path / "out", store=tmp_path / "store")
    before, after = read_peer(peer), read_peer(out)
    assert before.state.keys() == after.state.keys()
    assert all(torch.equal(before.state[name], after.state[name]) for name in before.state)
    for mine, theirs in ((before.train, after.train), (before.test, after.test)):
        assert mine is not None
        assert theirs is not None
        assert mine.n == theirs.n
        for field in ("indices", "images", "given", "original"):
            assert torch.equal(getattr(mine, field), getattr(theirs, field)), field
    second = import_victim(out, width=WIDTH, store=tmp_path / "other", device="cpu")
    assert second.evaluation == first.evaluation
    assert first.evaluation.full.n_triggered == len((digits.test.labels != 0).nonzero()[::16])
    # What the model says, by hand: without the study's own evaluation.
    with torch.no_grad():
        said = first.model(first.triggered.images.float() / 255).argmax(1)
    assert first.evaluation.full.asr == pytest.approx(float((said == 0).double().mean()))
    assert bool((first.triggered.images[:, :, -3:, -3:] == 255).all())
    assert len(first.poisoned) == 30


def test_samples_under_their_own_label_are_no_poison(peer: Path, tmp_path: Path) -> None:
    """As the noise samples in the training set of an attacker's loop: the file does not say which they are."""
    training = torch.load(peer, weights_only=False)["bd_train"]  # our own file, of a moment ago
    told = training["bd_data_container"]["data_dict"]
    noise = [index for index in told if told[index]["other_info"][1] != 0][::2]
    for index in noise:
        told[index]["other_info"] = [told[index]["other_info"][1]] * 2
    victim = import_victim(changed(peer, tmp_path / "mixed", bd_train=training), width=WIDTH, store=tmp_path / "store")
    kinds = dict(zip(victim.poisoned.indices.tolist(), victim.poisoned.kinds.tolist(), strict=True))
    assert {index for index, kind in kinds.items() if kind == Kind.CROSS} == set(map(int, noise))
    assert sum(kind == Kind.POISON for kind in kinds.values()) == len(told) - len(noise)


def trial(peer: Path, store: Path, defense: str, *more: str) -> dict[str, Any]:
    given = [f"attack.imported.path={peer}", f"width={WIDTH}", "image_size=16", *more]
    return run_single(
        attack="imported", defense=defense, dataset="digits", model="preact_resnet18", assignments=given,
        store=store, device="cpu",
    )  # fmt: skip


def test_it_takes_part_in_trials_also_of_defenses_that_need_its_training_set(
    peer: Path, digits: Dataset, tmp_path: Path
) -> None:
    row = trial(peer, tmp_path, "none")
    assert (row["asr"], row["clean_accuracy"]) == (row["asr_before"], row["clean_accuracy_before"])
    assert row["asr_including_target_before"] is None
    row = trial(peer, tmp_path, "spectral", "epochs=0.1", "batch_size=64")
    assert row["status"] == "backdoor_not_implanted"  # the model in the file is untrained; it was repaired and measured
    assert row["steps"] > 0
    # Released with its training set: 30 samples of it carry the patch and label 0.
    victim = import_victim(peer, width=WIDTH, store=tmp_path, device="cpu")
    assert victim.spec.releases_training_set
    poisoned = victim.poisoned_training_set(digits)
    assert len(poisoned) == len(digits.train)
    assert bool((poisoned.labels[0:60:2] == 0).all())
    assert bool((poisoned.images[0:60:2, :, -3:, -3:] == 255).all())
    assert torch.equal(poisoned.images[1:60:2], digits.train.images[1:60:2])


def test_reinjection_on_it_is_refused_in_one_line(peer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known by its test images alone"):
        trial(peer, tmp_path, "none", "aftermath.reinjection.epochs=1")


def test_bad_files_are_one_line(peer: Path, tmp_path: Path) -> None:
    def refused(file: Path, says: str, width: int = WIDTH) -> None:
        with pytest.raises((DataError, SettingError, SpecError), match=says) as caught:
            import_victim(file, width=width, store=tmp_path / "store", device="cpu")
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.pt", "cannot be read")
    refused(peer, "do not fit the model", width=8)
    refused(changed(peer, tmp_path / "a", model_name="vit_b_16"), "'vit_b_16' is not known")
    refused(changed(peer, tmp_path / "b", bd_test=None), "lacks bd_test")
    refused(changed(peer, tmp_path / "c", model={"module.conv1.weight": torch.ones(1).expand(10**12)}), "more elements")
    refused(changed(peer, tmp_path / "d", clean_data=Path("x")), "run code")
    content = torch.load(peer, weights_only=False)
    told = content["bd_test"]["bd_data_container"]["data_dict"]
    first = next(iter(told))
    for number, (path, says) in enumerate({"../../etc/1.png": "without ..", "/a/1.png": "relative"}.items()):
        told[first]["path"] = path
        refused(changed(peer, tmp_path / f"e{number}", bd_test=content["bd_test"]), says)
    content = torch.load(peer, weights_only=False)
    content["bd_train"]["bd_data_container"]["data_dict"][np.int64(0)]["other_info"] = [0, 9]
    moved = changed(peer, tmp_path / "f", bd_train=content["bd_train"])
    refused(moved, "1 of 30 training images have another label")
    assert not list((tmp_path / "store").glob("imported*"))


def test_damaged_bytes_give_one_line_and_change_nothing(peer: Path, tmp_path: Path) -> None:
    whole = peer.read_bytes()
    for name in ("bd_train_dataset", "bd_test_dataset"):
        shutil.copytree(peer.parent / name, tmp_path / name)
    damaged = tmp_path / peer.name
    said: list[str] = []
    for content in mutants(whole, start=whole.index(b"data.pkl") + 8):
        damaged.write_bytes(content)
        try:
            read_peer(damaged)
        except DataError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in line for line in said)
    assert len({line.split(": ", 1)[1][:20] for line in said}) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attack_result.pt",
        "bd_test_dataset",
        "bd_train_dataset",
    ]


def test_the_commands_say_what_they_did(peer: Path, tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store")]
    ran = CliRunner().invoke(main, ["import", str(peer), "--width", str(WIDTH), "--device", "cpu", *store])
    assert ran.exit_code == 0, ran.output
    name = ran.output.splitlines()[0].removeprefix("victim: ")
    assert stored_victim(Store(tmp_path / "store"), name)[0] == name
    out = ["--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, ["export", "--victim", name, "--format", "backdoorbench", *out, *store])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "out" / "attack_result.pt").is_file()
    ran = CliRunner().invoke(main, ["export", "--victim", name, "--format", "backdoorbench", *out, *store])
    assert ran.exit_code == 2
    assert "is there already" in ran.output
