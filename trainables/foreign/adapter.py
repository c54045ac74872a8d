"""Any image classifier in the form of `Classifier`: what defenses work on is found by watching one batch go through.

Tracing is by forward hooks, not by `torch.fx`: they see what really ran, in models with branches and checks as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainables.models.build import ModelError
from trainables.models.classifier import Classifier, Normalize
from trainables.training.loop import evaluating


@dataclass(frozen=True)
class FoundParts:
    """Names of modules within a model.

    Args:
        num_classes: outputs.
        head: the linear layer whose outputs are the logits; None: there is none.
        stages: layers whose outputs are the last feature maps at each size, largest maps first.
        sizes: height and width of those maps.
        last_block: the last block of layers; None: it was not found.
        lacking: name of a part in `models.parts.PARTS` -> why the model has none.
    """

    num_classes: int
    head: str | None
    stages: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    last_block: str | None
    lacking: Mapping[str, str] = field(default_factory=dict)


class ForeignClassifier(Classifier):
    """Somebody's model with the parts that defenses ask for.

    ``inner`` is the model itself and holds all weights. `forward` gives float32 logits of images in [0, 1].

    Args:
        inner: in float32.
        parts: what `find_parts` found in it.
        mean, std: what its images are normalised with.
        image_size: side of its images, in pixels.
    """

    def __init__(
        self, inner: nn.Module, parts: FoundParts, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        nn.Module.__init__(self)
        self.normalize, self.inner, self.neck = Normalize(mean, std), inner, nn.Identity()
        self.parts, self.probe_size = parts, image_size
        # Past nn.Module's registration: they are layers of `inner`, whose names they must not have twice.
        self.__dict__["stages"] = [inner.get_submodule(name) for name in parts.stages]
        if parts.head is not None:
            self.__dict__["classifier"] = inner.get_submodule(parts.head)

    @property
    def num_classes(self) -> int:
        return self.parts.num_classes

    @property
    def last_block(self) -> nn.Module:
        return self.inner if self.parts.last_block is None else self.inner.get_submodule(self.parts.last_block)

    def map_sizes(self, image_size: int) -> list[tuple[int, int]]:
        return list(self.parts.sizes)  # as they were seen at its own size

    def embed(self, images: Tensor) -> Tensor:
        received: list[Tensor] = []
        handle = self.classifier.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[0]))
        try:
            self.inner(self.normalize(images))
        finally:
            handle.remove()
        return received[-1]

    def forward(self, images: Tensor) -> Tensor:
        if self.parts.head is not None:
            return super().forward(images)
        return output_of(self.inner(self.normalize(images))).float()


def output_of(output: Any) -> Tensor:
    """The logits among what a model returns: a tensor, the first of several, or a field ``logits``.

    Raises:
        ModelError: none of these.
    """
    if not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ModelError(f"the model must return a tensor of logits, got {type(output).__name__}")
    return output


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and `DataParallel`.

    Raises:
        ModelError: a model that cannot be trained as it is.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                "a TorchScript model has no layers that a defense could work on; give the nn.Module that it was made of"
            )
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if not isinstance(inner, nn.Module) and isinstance(model, nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, module in model.named_modules():
        where = type(module).__module__
        if ".quantized" in where or ".qat" in where:
            raise ModelError(
                f"{name or 'the model'} is a quantised layer ({type(module).__name__}) and cannot be trained; repair "
                "the float model and quantise that again"
            )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ModelError(f"{name} has no shape yet; run the model once on an image before")
    return model


def adapt(
    model: nn.Module, *, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Classifier, dict[str, str]]:
    """The model as a `Classifier`, and what it lacks: name of a part -> why.

    A model of ours is one already, with its own normalisation.

    Args:
        model: in float32, on the device where it is to run.
        image_size: side of its images, in pixels.
        mean, std: per channel, in units of [0, 1] pixels; std > 0.

    Raises:
        ModelError: it does not take such images, or does not give one finite logit per class.
    """
    if min(std) <= 0:
        raise ModelError(f"--std must be above 0, got {tuple(std)}")
    if isinstance(model, Classifier):
        model.probe_size = image_size
        _watched(model, model, image_size)
        return model, _without_batch_norm(model)
    parts = find_parts(model, image_size=image_size, mean=mean, std=std)
    return ForeignClassifier(model, parts, mean, std, image_size), dict(parts.lacking)


@dataclass
class _Seen:
    """What ran: every layer that returned a tensor, in order, parents after their children.

    Args:
        order: name, layer and shape of its output.
        vectors: outputs (N, D), the last of each layer.
        received: inputs of linear layers, likewise.
    """

    order: list[tuple[str, nn.Module, tuple[int, ...]]] = field(default_factory=list)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)


def find_parts(model: nn.Module, *, image_size: int, mean: Sequence[float], std: Sequence[float]) -> FoundParts:
    """The parts of a model, from what two images of noise do in it (ModelError as in `adapt`)."""
    prepared = Normalize(mean, std).to(next(iter(model.parameters()), torch.empty(0)).device)
    output, seen = _watched(model, prepared, image_size)
    lacking = _without_batch_norm(model)
    lacking["stages"] = "a model from outside is cut into none"
    head = _head(output, seen)
    if head is None:
        lacking["head"] = "its outputs are not those of one nn.Linear on vectors"
    elif parametrize.is_parametrized(model.get_submodule(head)):
        lacking["head"], head = f"the weight of its {head} is computed from others", None
    stages, sizes = _stages(seen)
    if len(stages) < 2:
        several = "one size" if stages else "none that convolutions made"
        lacking["maps"] = f"this model has maps at {several}"
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    computed = next((name for name, module in convolutions if parametrize.is_parametrized(module)), None)
    if not convolutions:
        lacking["convolutions"] = "this model has none"
    elif computed is not None:
        lacking["convolutions"] = f"the weight of its {computed} is computed from others"
    last_block = _last_block(model, stages)
    if last_block is None:
        lacking["last_block"] = "none was found in this model"
    return FoundParts(int(output.shape[1]), head, stages, sizes, last_block, lacking)


def _watched(model: nn.Module, first: nn.Module, image_size: int) -> tuple[Tensor, _Seen]:
    """Logits (2, K) of two images of noise, and what ran; ``first`` normalises, or is the model itself."""
    device = next(iter(model.parameters()), torch.empty(0)).device
    noise = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    seen = _Seen()

    def ran(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            seen.order.append((name, module, tuple(output.shape)))
            if output.dim() == 2:
                seen.vectors[name] = output.detach().clone()  # a later layer may write into it
            if isinstance(module, nn.Linear) and inputs and isinstance(inputs[0], Tensor):
                seen.received[name] = inputs[0].detach()

    hooks = [
        module.register_forward_hook(lambda m, inputs, output, name=name: ran(name, m, inputs, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with evaluating(model), torch.no_grad():
            output = output_of(model(noise if first is model else first(noise)))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_does_not_take(model, image_size, error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    if output.dim() != 2 or len(output) != 2 or output.shape[1] < 2:
        raise ModelError(f"the model must give (N, classes) logits of N images, got {tuple(output.shape)} of 2 images")
    if not bool(output.isfinite().all()):
        raise ModelError("the model gives outputs that are NaN or infinite, of two images of noise")
    return output.detach(), seen


def _does_not_take(model: nn.Module, image_size: int, error: Exception) -> str:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        kind = "grey images" if first.in_channels == 1 else f"{first.in_channels} channels"
        return f"the model takes {kind}, and only models of colour images (3 channels) can be repaired"
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the model does not take images of {image_size} pixels ({why}); give --size as it was trained"


def _without_batch_norm(model: nn.Module) -> dict[str, str]:
    norms = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    ]
    if not norms:
        return {"batch_norm": "this model has none"}
    bare = next((name for name, module in norms if module.running_var is None), None)
    return {} if bare is None else {"batch_norm": f"its {bare} keeps no running statistics"}


def _head(output: Tensor, seen: _Seen) -> str | None:
    """The linear layer, run once on vectors, whose outputs are the model's.

    Or become them by a softmax or its logarithm, which leave the order: then the logits are what the layer gives.
    """
    ran = [name for name, module, _ in seen.order if isinstance(module, nn.Linear)]
    for name, module, shape in reversed(seen.order):
        if not isinstance(module, nn.Linear) or shape != output.shape or ran.count(name) > 1:
            continue
        made = seen.vectors[name]
        after = (made, made.log_softmax(1), made.softmax(1))
        if seen.received[name].dim() == 2 and any(torch.allclose(it, output, rtol=1e-5, atol=1e-6) for it in after):
            return name
    return None


def _stages(seen: _Seen) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """The last of the outermost layers at each size of maps that a convolution made, largest first.

    Sizes of 1 x 1 are left out: most are the gates of squeeze-and-excitation. What a pool alone made is no stage.
    """
    last = {name: position for position, (name, _, _) in enumerate(seen.order)}
    at_size: dict[tuple[int, int], str] = {}
    made: set[tuple[int, int]] = set()
    for position, (name, module, shape) in enumerate(seen.order):
        if len(shape) != 4:
            continue
        size = (shape[2], shape[3])
        if isinstance(module, nn.Conv2d):
            made.add(size)
        # A layer that runs several times shows its last output to a hook.
        # The outermost: the first layer of the next block may still have the size of this one.
        outer = size not in at_size or name.count(".") <= at_size[size].count(".")
        if outer and last[name] == position and size in made and size[0] * size[1] > 1:
            at_size[size] = name
    ordered = sorted(at_size, key=lambda size: -size[0] * size[1])
    return tuple(at_size[size] for size in ordered), tuple(ordered)


def _last_block(model: nn.Module, stages: tuple[str, ...]) -> str | None:
    """The last child with parameters of the last stage, else of the largest row of equal layers (transformers)."""
    places = [stages[-1]] if len(stages) > 1 else []
    rows = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList) and len({type(child) for child in module.children()}) == 1
    }
    if not places and rows:
        places.append(max(rows, key=lambda name: rows[name]))
    for place in places:
        children = [
            name
            for name, child in model.get_submodule(place).named_children()
            if next(child.parameters(), None) is not None
        ]
        if children:
            return f"{place}.{children[-1]}" if place else children[-1]
    return None
