"""Architectures by name: ours, torchvision's, timm's, and functions of the user's own code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainables.models.build import MODELS, ModelError, build_model
from trainables.plugins.modules import PluginError, import_from, located
from trainables.registry import nearest

FORMS = "NAME (superft list models), torchvision:NAME, timm:NAME, package.module:function or file.py:function"
# What models of these packages are nearly always trained with, per colour.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Architecture:
    """How to make a model.

    Args:
        name: as the user wrote it.
        make: (number of classes, None for the function's own) -> a model with random weights on the CPU.
        normalization: mean and std that its images are most likely normalised with; None: the model does it itself.
    """

    name: str
    make: Callable[[int | None], nn.Module]
    normalization: tuple[Sequence[float], Sequence[float]] | None

    def build(self, num_classes: int | None, generator: torch.Generator | None = None) -> nn.Module:
        """A model; its weights come from ``generator`` alone (one integer is drawn), or are those of seed 0.

        Raises:
            ModelError: the function fails, or returns no module.
        """
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                model = self.make(num_classes)
            except ModelError:
                raise
            except Exception as error:  # whatever their code raises
                raise ModelError(
                    f"--arch {self.name}: {type(error).__name__}: {' '.join(str(error).split())}"
                ) from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"--arch {self.name}: must return a torch.nn.Module, got {type(model).__name__}")
        return model.cpu()


def architecture(name: str, width: int | None = None) -> Architecture:
    """The architecture called ``name``.

    Args:
        width: channels of the first stage, of a model of ours whose width can be set.

    Raises:
        ModelError: no such architecture, or its package is not installed.
    """
    kind, colon, rest = name.partition(":")
    if width is not None and (colon or name not in MODELS or not MODELS.get(name).is_wide):
        raise ModelError(f"--width {width}: --arch {name} has a width of its own; leave it out")
    if not colon:
        if name not in MODELS:
            raise ModelError(f"--arch {name!r}: {nearest(name, MODELS.names())}; or write {FORMS}")
        return Architecture(
            name, lambda classes: build_model(name, num_classes=classes or 10, width=width, image_size=2**20), None
        )
    if kind == "torchvision":
        return Architecture(name, _torchvision(rest), IMAGENET)
    if kind == "timm":
        return Architecture(name, _timm(rest), IMAGENET)
    if not kind or not rest.isidentifier():
        raise ModelError(f"--arch {name!r}: write {FORMS}")
    return Architecture(name, _function(kind, rest, name), PLAIN)


def _torchvision(name: str) -> Callable[[int | None], nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"--arch torchvision:{name}: {nearest(name, known)}")
    # Without it Inception and GoogLeNet draw each weight by itself from SciPy, for minutes.
    quick = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    return lambda classes: models.get_model(name, weights=None, **quick, **_classes(classes))


def _timm(name: str) -> Callable[[int | None], nn.Module]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(f"--arch timm:{name}: timm is not installed; pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"--arch timm:{name}: {nearest(name, timm.list_models())}")

    def make(classes: int | None) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **_classes(classes))
        return model

    return make


def _function(place: str, function: str, name: str) -> Callable[[int | None], nn.Module]:
    found = getattr(_module(place, name), function, None)
    if not callable(found):
        raise ModelError(f"--arch {name}: {place} has no function {function!r}")
    try:
        takes = "num_classes" in inspect.signature(found).parameters
    except (TypeError, ValueError):  # of C code
        takes = False

    def make(classes: int | None) -> nn.Module:
        model: nn.Module = found(**(_classes(classes) if takes else {}))
        return model

    return make


def _module(place: str, name: str) -> ModuleType:
    """The user's own module, found as a plug-in is: installed, in the working folder, or at a path."""
    try:
        module, path = located(place, None)
        if path is not None:
            import_from(module.partition(".")[0], path)
        return importlib.import_module(module)
    except PluginError as error:
        raise ModelError(f"--arch {name}: {str(error).removeprefix('plug-in ')}") from error
    except Exception as error:  # whatever their code raises
        raise ModelError(f"--arch {name}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _classes(classes: int | None) -> dict[str, Any]:
    return {} if classes is None else {"num_classes": classes}


def classes_in(states: Mapping[str, Mapping[str, Tensor]], model: nn.Module) -> int | None:
    """How many outputs the weights have, by the rows of the layer that is the last one of ``model``.

    Args:
        states: of a file.
        model: of the architecture, for whatever number of classes.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        return None
    wanted = f"{layers[-1]}.weight"
    rows = {
        int(tensor.shape[0])
        for state in states.values()
        for name, tensor in state.items()
        if (name == wanted or name.endswith(f".{wanted}")) and tensor.dim() in (2, 4)
    }
    return rows.pop() if len(rows) == 1 else None
