"""Our own exchange format: a victim goes out as a folder and comes in again with equal numbers; bad ones are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from study.plan.jobs import prepare
from study.run.one_trial import run_single
from study.run.peers import import_victim
from study.run.victim_folder import export_folder
from study.spec.yaml_io import SpecError
from tests.mutants import mutants
from tests.study.commands import assert_refused, invoke
from tests.study.tiny import tiny_spec
from trainables.attacks import recorded
from trainables.attacks.base import Kind
from trainables.attacks.peer import read_peer
from trainables.data.images import DataError
from trainables.data.load import load_dataset
from trainables.models.build import build_model
from trainables.storage.store import Store
from trainables.storage.tensor_file import read_tensor_file
from trainables.victims.victim import Victim
from trainables.workbench import Workbench


def make(store: Path, *assignments: str) -> Victim:
    """A victim of a few steps."""
    plan, _, _ = prepare(tiny_spec("victim.epochs=1", f"store={store}", *assignments))
    return Workbench(Store(store), torch.device("cpu")).victim(plan.cells[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def victim(store: Path) -> Victim:
    return make(store)


@pytest.fixture(scope="module")
def folder(store: Path, victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "victim"
    export_folder(victim.name, out, store=store)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_victim_goes_out_and_comes_in_with_equal_numbers(
    folder: Path, store: Path, victim: Victim, tmp_path: Path
) -> None:
    back = import_victim(folder, store=tmp_path / "store", device="cpu")
    assert back.evaluation == victim.evaluation
    state = victim.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in back.model.state_dict().items())
    for field in ("images", "labels", "targets", "sources"):
        assert torch.equal(getattr(back.triggered, field), getattr(victim.triggered, field)), field
    for field in ("indices", "images", "labels", "kinds"):
        assert torch.equal(getattr(back.poisoned, field), getattr(victim.poisoned, field)), field
    # And once more: the same files but for what is said of their making.
    again = tmp_path / "again"
    export_folder(back.name, again, store=tmp_path / "store")
    first, second = (json.loads((each / "victim.json").read_text()) for each in (folder, again))
    assert {key: value for key, value in first.items() if key != "made"} == {
        key: value for key, value in second.items() if key != "made"
    }
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names == {str(path.relative_to(again)) for path in again.rglob("*")}
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names if name.endswith("png"))


def test_whoever_has_only_the_page_can_read_it(folder: Path, victim: Victim) -> None:
    """What docs/own_models.md says of the format is enough for the victim's ASR; our own reader is not asked."""
    told = json.loads((folder / "victim.json").read_text())
    model = build_model(
        told["model"]["arch"], num_classes=told["model"]["num_classes"], width=told["model"]["width"], image_size=8
    )
    weights = folder / "model.safetensors"
    model.load_state_dict(read_tensor_file(weights, weights.stat().st_size))
    part = told["triggered_test"]
    pictures = [Image.open(folder / "triggered_test" / f"{index:06d}.png") for index in part["index"]]
    pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]
    with torch.no_grad():
        said = model.eval()(torch.stack(pixels).float() / 255).argmax(1)
    asr = float((said == torch.tensor(part["label"])).double().mean())
    assert asr == pytest.approx(victim.evaluation.full.asr)
    clean = load_dataset(told["dataset"]["name"], image_size=told["dataset"]["image_size"])
    assert clean.test.labels[torch.tensor(part["index"])].tolist() == part["original"]
    assert part["of"] == len(clean.test)
    assert told["poisoned_train"]["of"] == len(clean.train)


def test_it_takes_part_in_a_study(folder: Path, victim: Victim, tmp_path: Path) -> None:
    row = run_single(
        attack="imported", defense="spectral", dataset="digits", model="preact_resnet18", store=tmp_path, device="cpu",
        assignments=[f"attack.imported.path={folder}", "width=2", "image_size=8", "precision=float32", "epochs=0.1"],
    )  # fmt: skip
    assert row["asr_before"] == victim.evaluation.full.asr
    assert row["steps"] > 0


def test_samples_under_their_own_label_stay_what_they_are(tmp_path: Path) -> None:
    """WaNet's noise images carry a trigger and their true label."""
    made = make(tmp_path / "store", "attacks=[wanet]")
    assert bool((made.poisoned.kinds == Kind.CROSS).any())
    export_folder(made.name, tmp_path / "out", store=tmp_path / "store")
    back = import_victim(tmp_path / "out", store=tmp_path / "other", device="cpu")
    assert torch.equal(back.poisoned.kinds, made.poisoned.kinds)
    assert torch.equal(back.poisoned.labels, made.poisoned.labels)
    assert back.evaluation == made.evaluation


def test_samples_behind_the_set_stay_there(copy: Path, tmp_path: Path) -> None:
    def behind(told: dict[str, Any]) -> None:
        told["poisoned_train"]["appended"][0] = True

    digits = load_dataset("digits", image_size=8)
    back = import_victim(change(copy, behind), store=tmp_path / "store", device="cpu")
    assert back.poisoned.in_place.tolist() == [False] + [True] * (len(back.poisoned) - 1)
    assert len(back.poisoned_training_set(digits)) == len(digits.train) + 1
    export_folder(back.name, tmp_path / "again", store=tmp_path / "store")
    assert json.loads((tmp_path / "again" / "victim.json").read_text())["poisoned_train"]["appended"][0] is True


def test_a_users_own_images_go_with_it(tmp_path: Path) -> None:
    """Nobody else has them; the data set's folder may be gone afterwards."""
    digits, photos = load_dataset("digits", image_size=8), tmp_path / "photos"
    for part, images, count in (("train", digits.train, 200), ("test", digits.test, 100)):
        for index in range(count):
            file = photos / part / "abcdefghij"[int(images.labels[index])] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[index].permute(1, 2, 0).numpy()).save(file)
    made = make(tmp_path / "store", f"dataset=folder:{photos}", "flip=false")
    export_folder(made.name, tmp_path / "out", store=tmp_path / "store")
    shutil.rmtree(photos)
    back = import_victim(tmp_path / "out", store=tmp_path / "other", device="cpu")
    assert back.evaluation == made.evaluation
    assert json.loads((tmp_path / "out" / "victim.json").read_text())["dataset"]["flip"] is False
    assert str(tmp_path) not in (tmp_path / "out" / "victim.json").read_text()


# -- what is refused ----------------------------------------------------------------------------------------------


def refused(path: Path, store: Path, says: str) -> None:
    with pytest.raises((DataError, SpecError), match=says) as caught:
        import_victim(path, store=store, device="cpu")
    assert "\n" not in str(caught.value)
    assert not list(store.glob("imported*"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    told = json.loads((folder / "victim.json").read_text())
    edit(told)
    (folder / "victim.json").write_text(json.dumps(told))
    return folder


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "its format is not 'superft victim'": lambda told: told.pop("format"),
    "version 2 is not read": lambda told: told.update(version=2),
    "lacks model, a mapping": lambda told: told.update(model=[1]),
    "model 'vgg99' is not known here": lambda told: told["model"].update(arch="vgg99"),
    "num_classes must be a whole number from 2": lambda told: told["model"].update(num_classes=True),
    "precision must be one of float32, bfloat16": lambda told: told["model"].update(precision="auto"),
    "image_size must be a whole number from 1 to 512": lambda told: told["dataset"].update(image_size=10**9),
    "its hash is not the one told": lambda told: told["model"].update(sha256="0"),
    r"holds no triggered test images": lambda told: told.update(triggered_test=None),
    "whose label the attack changes": lambda told: told["triggered_test"].update(
        label=told["triggered_test"]["original"]
    ),
    r"triggered_test.index must be a whole number from 0 to": lambda told: told["triggered_test"]["index"].append(-1),
    "triggered_test.index names an image twice": lambda told: told["triggered_test"].update(index=[1, 1]),
    r"triggered_test.label must be a list of \d+ of whole": lambda told: told["triggered_test"].update(label=[0]),
    r"triggered_test.of must be a whole number": lambda told: told["triggered_test"].update(of=10**12),
    "poisoned_train.index must be a whole number": lambda told: told["poisoned_train"].update(index=["../../etc/1"]),
    "poisoned_train.kind must be a list of": lambda told: told["poisoned_train"]["kind"].pop(),
    "poisoned_train.appended must be a list": lambda told: told["poisoned_train"].update(appended=[0]),
    r"pictures of poisoned_train are not those": lambda told: told["poisoned_train"].update(sha256="0"),
    "data set digits is not the one": lambda told: told["dataset"].update(fingerprint="0"),
}


@pytest.mark.parametrize("says", EDITS)
def test_what_a_description_may_not_say_is_one_line(says: str, copy: Path, tmp_path: Path) -> None:
    refused(change(copy, EDITS[says]), tmp_path / "store", says)


def test_files_that_are_not_what_they_should_be_are_one_line(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    refused(tmp_path / "nowhere", store, "cannot be read")
    refused(tmp_path, store, "victim.json: cannot be read")
    first = sorted((copy / "triggered_test").iterdir())[0]
    whole = first.read_bytes()
    Image.new("RGB", (9, 9)).save(first)
    refused(copy, store, "must be RGB of 8 pixels")
    Image.new("RGB", (8, 8)).save(first)
    refused(copy, store, "pictures of triggered_test are not those")
    first.unlink()
    refused(copy, store, "is missing")
    outside = tmp_path / "outside.png"
    outside.write_bytes(whole)
    first.symlink_to(outside)
    refused(copy, store, "leads out of its folder")
    first.unlink()
    first.write_bytes(whole)
    monkeypatch.setattr(recorded, "MAX_PIXEL_BYTES", 1000)
    read_peer.__globals__["_read"].cache_clear()
    refused(copy, store, "more than the 1000 allowed")
    monkeypatch.undo()
    weights = copy / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    refused(copy, store, "model.safetensors leads out of its folder")
    weights.unlink()
    refused(copy, store, "model.safetensors is missing")
    (copy / "victim.json").write_text("[" * 100_000)
    refused(copy, store, "damaged")


@pytest.mark.parametrize("name", ["victim.json", "model.safetensors", "picture"])
def test_damaged_bytes_give_one_line_and_change_nothing(name: str, folder: Path, copy: Path) -> None:
    file = sorted((copy / "triggered_test").iterdir())[0] if name == "picture" else copy / name
    before, said = {str(path) for path in copy.rglob("*")}, list[str]()
    read_peer.__globals__["_read"].cache_clear()
    for content in mutants(file.read_bytes()):
        file.write_bytes(content)
        read_peer.__globals__["_read"].cache_clear()
        try:
            read_peer(copy)
        except DataError as error:
            said.append(str(error))
    # A letter of a name that nobody reads may be another; what is measured with is under a hash.
    assert len(said) > (100 if name == "victim.json" else 150)
    assert not any("\n" in line for line in said)
    assert {str(path) for path in copy.rglob("*")} == before


def test_the_commands_say_what_they_did(store: Path, victim: Victim, tmp_path: Path) -> None:
    out, of = tmp_path / "out", ("--victim", victim.name, "--format", "folder", "--store", store)
    told = invoke("export", *of, "--out", out)
    assert told.exit_code == 0, told.output
    assert f"wrote {out / 'victim.json'}" in told.stdout
    assert_refused(invoke("export", *of, "--out", out), "is there already")
    assert invoke("export", *of, "--out", out, "--overwrite").exit_code == 0
    assert_refused(invoke("export", "--victim", victim.name, "--out", out), "--format folder or backdoorbench")
    told = invoke("import", out, "--store", tmp_path / "store", "--device", "cpu")
    assert told.exit_code == 0, told.output
    assert f"attack success rate {victim.evaluation.full.asr:.4f}" in told.stdout
    clean = next(path.name for path in store.iterdir() if path.name.startswith("clean-"))
    refused_line = invoke("export", "--victim", clean, "--format", "folder", "--store", store, "--out", tmp_path / "c")
    assert_refused(refused_line, "is a clean model")
