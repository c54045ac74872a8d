"""Weights from a stranger's file: read without running code, found in whatever wraps them, fitted to a model by name.

A file is safetensors, or what ``torch.save`` wrote, opened with ``weights_only=True`` alone. Sizes that the file states
are looked at before any memory is taken for them.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.data.sources.parts import listed
from trainables.models.build import ModelError
from trainables.storage.messages import one_line
from trainables.storage.tensor_file import UnsafeTensorFileError, read_tensor_file
from trainables.storage.zip_check import MAX_MEMBERS, UnsafeZipError, check_zip

MAX_BYTES = 16 * 2**30  # of a file; the largest image classifiers hold a few GiB
MAX_DEPTH = 4  # of mappings within mappings
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

# Batch normalisation counts its batches since PyTorch 0.4.1; earlier files lack it, and nothing here depends on it.
OPTIONAL = "num_batches_tracked"

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Args:
        path: as it was given.
        sha256: of the file.
        states: the state dicts in it, by the keys that lead there, ``""`` for the file's own top.
    """

    path: Path
    sha256: str
    states: Mapping[str, State]


@dataclass(frozen=True)
class Fit:
    """A state dict of a file that fits a model.

    Args:
        label: keys that lead there and the prefix of its names, for messages and ``--key``.
        prefix: of every name, ``module.`` for one.
        state: the whole of it, as it is in the file.
        names: the model's name -> the file's.
    """

    label: str
    prefix: str
    state: State
    names: Mapping[str, str]

    def values(self) -> State:
        """The tensors by the model's names."""
        return {name: self.state[there] for name, there in self.names.items()}

    def with_values(self, values: Mapping[str, Tensor]) -> State:
        """The file's state dict with other values: the same names in the same order, each of its old type.

        Args:
            values: by the model's names.
        """
        back = {there: values[name] for name, there in self.names.items()}
        return {
            there: back.get(there, tensor).detach().cpu().to(tensor.dtype).contiguous().clone()
            for there, tensor in self.state.items()
        }


def read_weights(path: str | Path) -> WeightsFile:
    """The state dicts in a file.

    Raises:
        ModelError: one line: no such file, no weights, damaged, too large, or it would have to run code.
    """
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"weights {path}: is no file; give one of {', '.join(ENDINGS)}")
        if size > MAX_BYTES:
            raise ModelError(f"weights {path}: {size} bytes are more than the {MAX_BYTES} that are read")
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"weights {path}: cannot be read ({one_line(error)})") from error
    content = _read_safetensors(path, size) if _is_safetensors(start) else _read_torch(path, size, start)
    states = dict(_states(content, "", MAX_DEPTH))
    if not states:
        raise ModelError(f"weights {path}: holds no state dict, which maps names to tensors, at any of its keys")
    if (count := sum(map(len, states.values()))) > MAX_MEMBERS:
        raise ModelError(f"weights {path}: holds {count} tensors, more than the {MAX_MEMBERS} that are read")
    return WeightsFile(path, digest, states)


def _is_safetensors(start: bytes) -> bool:
    """By content: the length of a JSON header, and its first letter."""
    return len(start) > 8 and start[8:9] == b"{" and start[:2] != b"PK"


def _read_safetensors(path: Path, size: int) -> State:
    try:
        return read_tensor_file(path, size)
    except UnsafeTensorFileError as error:
        raise ModelError(f"weights {path}: {error}") from error


def _read_torch(path: Path, size: int, start: bytes) -> Any:
    if start[:4] == b"PK\x03\x04":
        try:
            check_zip(path, size)
        except UnsafeZipError as error:
            raise ModelError(f"weights {path}: {error}") from error
    elif start[:1] != b"\x80":  # a pickle: torch's format before 1.6
        raise ModelError(f"weights {path}: neither safetensors nor a file of torch.save, by its first bytes")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd protocols, in damaged files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = one_line(error)
        if "TorchScript" in why:
            raise ModelError(f"weights {path}: a TorchScript program; save its state_dict() instead") from error
        if "Unsupported" in why or "nsafe" in why or "allowed" in why or "Weights only" in why:
            raise ModelError(
                f"weights {path}: holds more than tensors and would run code to be opened, which is not done; save the "
                "model's state_dict() alone"
            ) from error
        raise ModelError(f"weights {path}: damaged ({why[:200]})") from error
    # The unpickler meets whatever a damaged file says: any of its operations may fail in any way.
    except Exception as error:
        if "TorchScript" in str(error):
            raise ModelError(f"weights {path}: a TorchScript program; save its state_dict() instead") from error
        raise ModelError(f"weights {path}: damaged ({type(error).__name__}: {one_line(error)[:200]})") from error


def _states(content: Any, where: str, depth: int) -> Iterator[tuple[str, State]]:
    """Every mapping from names to tensors within mappings; what else lies in it is left out."""
    if not isinstance(content, Mapping) or depth == 0:
        return
    # Sparse and nested tensors have no place in a classifier; quantised ones are told of by `refuse_unusable`.
    found = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
    if found:
        yield where, found
    for key, inner in content.items():
        if isinstance(key, str) and isinstance(inner, Mapping):
            yield from _states(inner, f"{where}.{key}" if where else key, depth - 1)


def fit_weights(file: WeightsFile, model: Mapping[str, Tensor], *, called: str, key: str | None = None) -> Fit:
    """The state dict in ``file`` that has all tensors of a model, whatever prefix its names have.

    Args:
        model: the model's own state dict; its values mean nothing.
        called: the model, for messages.
        key: label of one of several that fit.

    Raises:
        ModelError: none fits (what is missing, unexpected or of another shape, by name), several do and ``key`` does
            not say which, or a value is not finite.
    """
    candidates = [_candidate(where, prefix, state, model) for where, state in file.states.items()
                  for prefix in _prefixes(state, model)]  # fmt: skip
    fitting = [each for each in candidates if not _problems(each, model)]
    if key is not None:
        chosen = [each for each in fitting if each.label == key]
        if not chosen:
            known = listed([each.label for each in fitting]) or "none that fits"
            raise ModelError(f"--key {key!r}: weights {file.path} have no such state dict; there is {known}")
        fitting = chosen
    if len(fitting) > 1:
        raise ModelError(
            f"weights {file.path} hold {len(fitting)} state dicts of {called}: {listed([e.label for e in fitting])}; "
            "say which with --key"
        )
    if not fitting:
        best = max(candidates, key=lambda each: len(each.names), default=None)
        said = "no name of the model is in it" if best is None else "; ".join(_problems(best, model))
        raise ModelError(f"weights {file.path} do not fit {called}: {said}")
    (fit,) = fitting
    refuse_unusable(fit.values(), f"weights {file.path}")
    return fit


def refuse_unusable(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors that no repair can start from, by name: quantised, complex, NaN or infinite (ModelError)."""
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.dtype == torch.int8:
            raise ModelError(
                f"{what}: {name} is quantised ({tensor.dtype}) and cannot be trained; repair the float model and "
                "quantise that again"
            )
        if tensor.is_complex():
            raise ModelError(f"{what}: {name} is complex, which no classifier here is")
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            bad = int((~tensor.float().isfinite()).sum())
            raise ModelError(
                f"{what}: {name} holds {bad} values that are NaN or infinite; take weights from before that"
            )


def _prefixes(state: State, model: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which the file may have the model's names; asked of a few of those names."""
    found: dict[str, None] = {}
    required = [name for name in model if not name.endswith(OPTIONAL)]
    for name in (*required[:2], *required[-2:]):
        for there in state:
            if there.endswith(name) and (there == name or there[: -len(name)].endswith(".")):
                found.setdefault(there[: -len(name)])
    return list(found)


def _candidate(where: str, prefix: str, state: State, model: Mapping[str, Tensor]) -> Fit:
    names = {name: prefix + name for name in model if prefix + name in state}
    label = ":".join(part for part in (where, prefix.removesuffix(".")) if part) or "top"
    return Fit(label, prefix, state, names)


def _problems(fit: Fit, model: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting: names that are missing or unexpected, and shapes."""
    missing = [name for name in model if name not in fit.names and not name.endswith(OPTIONAL)]
    taken = set(fit.names.values())
    # Beside the prefix may lie what a wrapper keeps for itself (a loss, a count of averages).
    unexpected = [there for there in fit.state if there.startswith(fit.prefix) and there not in taken]
    if fit.prefix == "":
        unexpected = [there for there in unexpected if there != "n_averaged"]
    shapes = [
        f"{name} {_shape(fit.state[there])} (the model's is {_shape(model[name])})"
        for name, there in fit.names.items()
        if fit.state[there].shape != model[name].shape
    ]
    parts = {"missing": missing, "unexpected": unexpected, "another shape": shapes}
    return [f"{what}: {_some(names)}" for what, names in parts.items() if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def save_state(state: State, path: Path) -> str:
    """Write a state dict aside and rename it into place, as safetensors or, by the ending, with torch.save; its sha256.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    from trainables.storage.files import save_tensors

    aside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".safetensors":
            save_tensors(state, aside)
        else:
            torch.save(state, aside)
        with aside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return digest
