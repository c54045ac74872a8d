"""Claims of trainables.foreign.weights: what wraps a state dict is seen through, and a file can do no harm."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainables.foreign.nets import PlainCNN
from trainables.foreign.weights import MAX_MEMBERS, Fit, fit_weights, read_weights, save_state
from trainables.models.build import ModelError

MUTANTS = 200


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return PlainCNN(width=2).state_dict()


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _fit(path: Path, state: dict[str, Tensor], key: str | None = None) -> Fit:
    return fit_weights(read_weights(path), state, called="plain", key=key)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: OrderedDict(state),
    "DataParallel": lambda state: _prefixed(state, "module."),
    "compiled DataParallel": lambda state: _prefixed(state, "module._orig_mod."),
    "checkpoint": lambda state: {"epoch": 3, "state_dict": _prefixed(state, "module."), "optimizer": {"state": {}}},
    "nested": lambda state: {"checkpoint": {"model": state}, "args": {"lr": 0.1}},
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7), **_prefixed(state, "module.")},
    "lightning": lambda state: {"state_dict": {**_prefixed(state, "net."), "loss.weight": torch.ones(10)}},
    "best accuracy beside": lambda state: {"net": state, "best": torch.tensor(0.9)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_what_wraps_a_state_dict_is_seen_through(
    wrap: Callable[[dict[str, Tensor]], Any], state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    values = _fit(tmp_path / "w.pth", state).values()
    assert values.keys() == state.keys()
    assert all(torch.equal(values[name], state[name]) for name in state)


def test_safetensors_and_old_files_of_torch_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "old.pt"):
        assert torch.equal(_fit(tmp_path / name, state).values()["fc.weight"], state["fc.weight"])


def test_of_two_state_dicts_that_fit_one_must_be_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"2 state dicts.*state_dict, state_dict_ema; say which with --key"):
        _fit(tmp_path / "w.pth", state)
    assert torch.equal(_fit(tmp_path / "w.pth", state, "state_dict_ema").values()["fc.bias"], averaged["fc.bias"])
    with pytest.raises(ModelError, match=r"--key 'ema'.*state_dict, state_dict_ema"):
        _fit(tmp_path / "w.pth", state, "ema")


def test_what_does_not_fit_is_told_by_name(state: dict[str, Tensor], tmp_path: Path) -> None:
    given = {name: value for name, value in state.items() if name != "fc.bias"}
    given |= {"fc2.weight": torch.ones(3), "conv1.weight": torch.ones(2, 3, 7, 7)}
    save_file(given, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as told:
        _fit(tmp_path / "w.safetensors", state)
    for part in ("missing: fc.bias", "unexpected: fc2.weight", "conv1.weight 2x3x7x7 (the model's is 2x3x3x3)"):
        assert part in str(told.value)


def test_a_file_from_before_batches_were_counted_fits(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    save_file(old, tmp_path / "w.safetensors")
    fit = _fit(tmp_path / "w.safetensors", state)
    assert fit.with_values(state).keys() == old.keys()


def test_names_and_types_of_the_file_come_back(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {"module." + name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    torch.save({"model": half}, tmp_path / "w.pth")
    fit = _fit(tmp_path / "w.pth", state)
    save_state(fit.with_values({name: value * 2 for name, value in state.items()}), tmp_path / "new.safetensors")
    back = load_file(tmp_path / "new.safetensors")
    assert {name: value.dtype for name, value in back.items()} == {name: value.dtype for name, value in half.items()}
    assert torch.equal(back["module.fc.weight"], half["module.fc.weight"] * 2)


@pytest.mark.parametrize(
    ("value", "told"), [(float("nan"), "1 values that are NaN"), (float("inf"), "NaN or infinite")]
)
def test_weights_that_are_not_finite_are_named(
    value: float, told: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {name: tensor.clone() for name, tensor in state.items()}
    broken["bn1.bias"][0] = value
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"bn1.bias holds .*{told}"):
        _fit(tmp_path / "w.safetensors", state)


class _Harm:
    """What a pickle of it does when it is opened without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "more": _Harm(tmp_path / "harm")}, tmp_path / "w.pth")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(_Harm(tmp_path / "harm"), protocol=2))
    for name in ("w.pth", "bare.pkl"):
        with pytest.raises(ModelError, match=r"run code|damaged"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_whole_model_in_place_of_its_state_dict_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(PlainCNN(width=2), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"save the model's state_dict\(\) alone"):
        read_weights(tmp_path / "w.pth")


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_sizes_are_looked_at_before_memory_is_taken(tmp_path: Path) -> None:
    bomb = _zip(tmp_path / "bomb.pth", {"a/data.pkl": b"x", "a/data/0": bytes(2**24)}, zipfile.ZIP_DEFLATED)
    out = _zip(tmp_path / "out.pth", {"a/data.pkl": b"x", "../escaped": b"x"})
    many = _zip(tmp_path / "many.pth", {f"a/data/{i}": b"" for i in range(MAX_MEMBERS + 1)})
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{" + bytes(64))
    # A view of one number as 10^12: torch.load makes it, without memory; its shape is no model's.
    torch.save({"fc.bias": torch.zeros(1).expand(10**12)}, tmp_path / "view.pth")
    told = {
        bomb: "compressed",
        out: "leads out",
        many: f"more than the {MAX_MEMBERS}",
        tmp_path / "huge.safetensors": "damaged",
        tmp_path / "long.safetensors": "damaged",
    }
    for path, words in told.items():
        with pytest.raises(ModelError, match=words):
            read_weights(path)
    with pytest.raises(ModelError, match=r"fc\.bias 1000000000000"):
        _fit(tmp_path / "view.pth", {"fc.bias": torch.zeros(10)})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}.", b"hello, world", bytes(100)])
def test_what_is_no_weights_at_all_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError) as told:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "absent.pth")


def _told(path: Path, model: dict[str, Tensor]) -> str | None:
    """The message about a file; None: it was read."""
    try:
        fit_weights(read_weights(path), model, called="plain")
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_damaged_bytes_end_in_one_line(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    small = {"fc.bias": state["fc.bias"], "fc.weight": state["fc.weight"]}
    source, target = tmp_path / "source", tmp_path / "here" / "mutant.pth"
    target.parent.mkdir()
    if kind == "safetensors":
        save_file(small, source)
    else:
        torch.save(small, source, _use_new_zipfile_serialization=kind == "zip")
    whole, draw, read = source.read_bytes(), random.Random(0), 0
    for _ in range(MUTANTS):
        mutant = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4, 30])):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        if draw.random() < 0.2:
            del mutant[draw.randrange(len(mutant)) :]
        target.write_bytes(mutant)
        line = _told(target, small)
        read += line is None
        assert "\n" not in (line or "")
    assert read < MUTANTS  # some were damaged indeed
    assert sorted(tmp_path.iterdir()) == [tmp_path / "here", source]
    assert list(target.parent.iterdir()) == [target]
