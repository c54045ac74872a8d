"""A model as an ONNX file, by PyTorch's own exporter: for programs that have no PyTorch.

The exporter needs the packages ``onnx`` and ``onnxscript`` (extra ``onnx``), which nothing else here does.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.foreign.adapter import output_of
from trainables.models.build import ModelError
from trainables.storage.messages import one_line

NEEDS = ("onnx", "onnxscript")
INPUT, OUTPUT = "images", "logits"


def check_onnx(option: str) -> None:
    """Refuse an export where the exporter's packages are missing (ModelError); before any work."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"{option}: PyTorch's exporter needs {' and '.join(missing)}; pip install 'superft[onnx]'")


def write_onnx(model: nn.Module, path: Path, image_size: int) -> dict[str, Any]:
    """Write ``model``, in eval mode, aside and rename it into place; what a card says of it.

    The graph takes ``images``, (N, 3, S, S) of any N, as the model takes them, in its own type, and gives ``logits``,
    (N, K).

    Raises:
        ModelError: the exporter cannot write this model; nothing is left of it.
        OSError: the file cannot be written.
    """
    plain = _Logits(copy.deepcopy(model).cpu().eval())
    kinds = [value.dtype for value in plain.parameters() if value.is_floating_point()]
    example = torch.zeros(2, 3, image_size, image_size, dtype=kinds[0] if kinds else torch.float32)
    aside = path.with_name(f".{path.name}.part")
    try:
        _export(plain, example, aside)
        with aside.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    kind = str(example.dtype).removeprefix("torch.")
    return {"file": path.name, "sha256": digest, "input": [INPUT, kind, ["N", 3, image_size, image_size]]}


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,  # one file
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
    except OSError:
        raise
    # It traces somebody's code, and any of that may fail in any way.
    except Exception as error:
        raise ModelError(f"PyTorch's exporter cannot write this model as ONNX ({one_line(error)[:300]})") from error
    finally:
        log.setLevel(level)


class _Logits(nn.Module):
    """A model that may return more than its logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return output_of(self.inner(images))
