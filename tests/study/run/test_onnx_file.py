"""Claims of the ONNX export: the graph says what the model says; without its packages one line and nothing written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from study.record.ledger import Ledger
from superft.testing.toy_victims import toy
from tests.study.commands import assert_refused, invoke
from tests.study.rows import make_row
from tests.study.tiny import TINY
from tests.trainables.foreign.nets import PlainCNN, trained
from trainables.foreign.onnx_file import check_onnx, write_onnx
from trainables.models.build import ModelError, build_model
from trainables.storage.kept import keeper, kept_name
from trainables.storage.store import Store

TRIAL = "badnets/super_ft/0000"


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("onnxscript", reason="pip install 'superft[onnx]'")
    return pytest.importorskip("onnxruntime")


def said(runtime: Any, path: Path, images: Tensor) -> Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["images"]
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


class Several(nn.Module):
    """Returns its logits among other things, and has dropout and BatchNorm: eval mode is what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5))

    def forward(self, images: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        maps = self.body(images)
        return self.head(maps), maps


@pytest.mark.parametrize("name", ["preact_resnet18", "airbench_cnn", "Several"])
def test_the_graph_gives_the_models_logits_for_any_number_of_images(name: str, runtime: Any, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    model = Several() if name == "Several" else build_model(name, num_classes=7, width=4, generator=draw)
    model.train()
    told = write_onnx(model, tmp_path / "m.onnx", 32)
    assert model.training
    assert told["sha256"] == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32, generator=draw)
        with torch.no_grad():
            expected = model.eval()(images)
        expected = expected[0] if isinstance(expected, tuple) else expected
        # Sums in another order, of float32: some units in the last of seven places.
        torch.testing.assert_close(said(runtime, tmp_path / "m.onnx", images), expected, rtol=1e-4, atol=1e-5)


def test_a_repaired_model_is_written_as_a_graph_too(runtime: Any, tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "my.pth")
    data = toy().train
    np.savez(tmp_path / "clean.npz", images=data.images.numpy(), labels=data.labels.numpy())
    given = ("repair", "--weights", tmp_path / "my.pth", "--arch", "tests.trainables.foreign.nets:plain_cnn")
    given += ("--images", tmp_path / "clean.npz", "--set", "iterations=2", "--device", "cpu", "--export", "onnx")
    given += ("--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.25", "--out", tmp_path / "new.safetensors")
    result = invoke(*given)
    assert result.exit_code == 0, result.output
    assert f"graph: {tmp_path / 'new.onnx'}" in result.stdout
    card = json.loads((tmp_path / "new.json").read_text())
    size = data.image_size
    assert card["onnx"]["input"] == ["images", "float32", ["N", 3, size, size]]
    model = PlainCNN()
    model.load_state_dict(load_file(tmp_path / "new.safetensors"))
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(said(runtime, tmp_path / "new.onnx", images), expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "new.safetensors").unlink()
    (tmp_path / "new.json").unlink()
    assert_refused(invoke(*given), "new.onnx is there already")


def test_a_trials_model_is_written_as_a_graph_of_pixels(runtime: Any, tmp_path: Path) -> None:
    model = build_model(
        "preact_resnet18", num_classes=10, width=2, image_size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)
    )
    facts = {"trial": TRIAL, "attack": "badnets", "seed": 0, "defense_seed": 0, "model": "preact_resnet18"}
    kept = keeper(Store(tmp_path / "store"), kept_name("made-up", "trial"), facts)(model)
    folder = tmp_path / "study"
    folder.mkdir()
    spec = {**TINY, "name": "made-up", "keep": "all", "store": str(tmp_path / "store")}
    (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    row = make_row(TRIAL, seed=0, model="preact_resnet18", width=2, image_size=8, defense_seed=0)
    row |= {**kept, "accuracy_by_class": json.dumps([0.5] * 10), "versions": "torch 2", "code": "superft 0"}
    with Ledger(folder / "trials.jsonl") as ledger:
        ledger.append(row)
    told = invoke("export", folder, "--trial", TRIAL, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert told.exit_code == 0, told.output
    assert f"graph: {tmp_path / 'm.onnx'}" in told.stdout
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(said(runtime, tmp_path / "m.onnx", images), expected, rtol=1e-4, atol=1e-5)
    again = invoke("export", folder, "--trial", TRIAL, "--format", "onnx", "--out", tmp_path / "m.pt")
    assert_refused(again, "must end in .onnx")


class Chooses(nn.Module):
    """What it computes depends on the values of its images, which no graph holds."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] if float(images.sum()) > 1 else images.flatten(1)[:, 2:4]


def test_what_the_exporter_cannot_write_is_one_line(runtime: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exporter cannot write this model as ONNX") as caught:
        write_onnx(Chooses(), tmp_path / "m.onnx", 8)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_it_is_one_line_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ModelError, match=r"onnxscript; pip install 'superft\[onnx\]'"):
        check_onnx("--export onnx")
    out = ("--out", tmp_path / "m.safetensors")
    nothing = ("--weights", tmp_path / "no.pth", "--arch", "nobody:knows", "--data", tmp_path)
    assert_refused(invoke("repair", *nothing, *out, "--export", "onnx"), "--export onnx: PyTorch's exporter needs")
    assert_refused(invoke("export", tmp_path, "--trial", "x", *out, "--format", "onnx"), "--format onnx: PyTorch's")
    assert list(tmp_path.iterdir()) == []
