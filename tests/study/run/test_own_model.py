"""Claims of `superft repair`: files go in and come out whole, and bad input ends in one line with nothing written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import superft
from superft.testing.toy_victims import toy
from tests.study.commands import assert_refused, invoke
from tests.trainables.foreign.nets import MEAN, STD, PlainCNN, trained

ARCH = "tests.trainables.foreign.nets:plain_cnn"
SHORT = ("--set", "iterations=2", "--device", "cpu", "--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.25")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user has: weights of a checkpoint, and images. Shared: write elsewhere."""
    place = tmp_path_factory.mktemp("own")
    state = {"module." + name: value for name, value in trained().state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, place / "my.pth")
    data = toy().train
    np.savez(place / "clean.npz", images=data.images.numpy(), labels=data.labels.numpy())
    np.savez(place / "few.npz", images=data.images[:10].numpy(), labels=data.labels[:10].numpy())
    some = data.labels != 3
    np.savez(place / "absent.npz", images=data.images[some].numpy(), labels=data.labels[some].numpy())
    return place


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERFT_DATA", str(tmp_path / "cache"))


def _repair(own: Path, out: Path, *more: object, images: str = "clean.npz", weights: str = "my.pth") -> Result:
    given = ("--weights", own / weights, "--arch", ARCH, "--images", own / images, "--out", out)
    return invoke("repair", *given, *SHORT, *more)


def test_a_checkpoint_is_repaired_and_loads_back_with_the_same_names_and_types(own: Path, tmp_path: Path) -> None:
    result = _repair(own, tmp_path / "new.safetensors")
    assert result.exit_code == 0, result.output
    assert "clean accuracy" in result.stdout
    assert "not known: the attack success rate" in result.stdout
    before = torch.load(own / "my.pth", weights_only=True)["state_dict"]
    after = load_file(tmp_path / "new.safetensors")
    assert {name: (v.dtype, v.shape) for name, v in after.items()} == {n: (v.dtype, v.shape) for n, v in before.items()}
    assert not torch.equal(after["module.fc.weight"], before["module.fc.weight"])
    torch.nn.DataParallel(PlainCNN()).load_state_dict(after)

    card = json.loads((tmp_path / "new.json").read_text())
    for part, path in (("from", own / "my.pth"), ("weights", tmp_path / "new.safetensors")):
        assert card[part]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["settings"]["iterations"] == 2
    assert card["from"]["state_dict"] == "state_dict:module"
    assert card["images"]["held_out"] == 40

    # In Python the same seed, settings and images give the same weights.
    model = PlainCNN()
    model.load_state_dict({name.removeprefix("module."): value for name, value in before.items()})
    data = toy().train
    again = superft.repair(
        model, data.images, data.labels, mean=MEAN, std=STD, settings={"iterations": 2}, device="cpu"
    )
    assert all(torch.equal(value, after["module." + name]) for name, value in again.model.state_dict().items())


def test_what_is_there_is_not_replaced_unasked(own: Path, tmp_path: Path) -> None:
    (tmp_path / "new.pt").write_bytes(b"precious")
    assert_refused(_repair(own, tmp_path / "new.pt"), "is there already", "--overwrite")
    assert (tmp_path / "new.pt").read_bytes() == b"precious"
    told = _repair(own, tmp_path / "new.pt", "--overwrite", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == json.loads((tmp_path / "new.json").read_text())
    assert "module.fc.weight" in torch.load(tmp_path / "new.pt", weights_only=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"images": "few.npz"}, ("10 images are too few",)),
        ({"images": "absent.npz"}, ("no image of 1 of the model's 10 classes (3)",)),
        ({"weights": "absent.pth"}, ("absent.pth: cannot be read",)),
        ({"more": ("--arch", "torchvision:resnet18")}, ("do not fit torchvision:resnet18", "missing: ")),
        ({"more": ("--arch", "torchvision:resnet81")}, ("torchvision:resnet81", "did you mean 'resnet18'")),
        ({"more": ("--arch", "nowhere.models:make")}, ("--arch nowhere.models:make",)),
        ({"more": ("--arch", f"{ARCH}x")}, ("no function 'plain_cnnx'",)),
        ({"more": ("--arch", "resnet81")}, ("torchvision:NAME",)),
        ({"more": ("--defense", "super")}, ("unknown defense 'super'",)),
        ({"more": ("--set", "lr_max=1")}, ("defense.super_ft.lr_max", "lr_max1")),
        ({"more": ("--data", "somewhere")}, ("either with --data DIR or with --images",)),
        ({"more": ("--classes", "a,b,c")}, ("do not fit", "fc.weight 10x16 (the model's is 3x16)")),
        ({"more": ("--mean", "0.5")}, ("--mean '0.5'", "three finite numbers")),
        ({"more": ("--size", "8", "--key", "ema")}, ("--key 'ema'", "state_dict:module")),
        ({"more": ("--width", "4")}, ("--width 4", "leave it out")),
        ({"more": ("--device", "nothing")}, ("--device nothing",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    more: dict[str, Any], words: tuple[str, ...], own: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    given = dict(more)
    result = _repair(own, tmp_path / "out" / "new.safetensors", *given.pop("more", ()), **given)
    assert_refused(result, *words)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_repair_that_diverges_writes_nothing(own: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = _repair(own, tmp_path / "out" / "new.safetensors", "--set", "lr_max1=1e30", "--set", "iterations=6")
    assert result.exit_code == 1, result.output
    assert "the repair diverged" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(own: Path, tmp_path: Path) -> None:
    assert_refused(_repair(own, tmp_path / "nowhere" / "new.safetensors"), "is no folder that can be written to")
    assert_refused(_repair(own, tmp_path / "new.onnx"), "must end in one of .safetensors, .pt, .pth")
    assert_refused(_repair(own, own / "my.pth", "--overwrite"), "the file of --weights itself")


def test_a_half_precision_file_comes_back_so(own: Path, tmp_path: Path) -> None:
    state = torch.load(own / "my.pth", weights_only=True)["state_dict"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    assert (
        _repair(
            tmp_path, tmp_path / "new.safetensors", weights="half.safetensors", images=str(own / "clean.npz")
        ).exit_code
        == 0
    )
    after = load_file(tmp_path / "new.safetensors")
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in half.items()}
