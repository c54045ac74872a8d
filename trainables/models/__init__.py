"""Models by name: each takes images in [0, 1], normalises inside, and has the parts of ``Classifier``."""

import difflib
from collections.abc import Sequence

import torch

from trainables.models.classifier import Classifier

__all__ = ["DEFAULT_WIDTH", "MODELS", "WIDE_MODELS", "Classifier", "ModelError", "build_model"]

MODELS: dict[str, str] = {
    "preact_resnet18": "PreAct-ResNet18, the paper's model; any width (default 64)",
    "encoder_resnet18": "ResNet-18 as an encoder under BadEncoder's downstream head; any width (default 64)",
    "resnet18": "ResNet-18 of torchvision with a small-image stem",
    "resnet34": "ResNet-34 of torchvision with a small-image stem",
    "vgg19_bn": "VGG-19 with BatchNorm and one linear layer; 16 pixels or more",
    "mobilenet_v2": "MobileNetV2 of torchvision with stride 1 in its first two groups, no dropout",
    "densenet121": "DenseNet-121 of torchvision with a small-image stem",
    "convnext_tiny": "ConvNeXt-Tiny of torchvision with a 3x3 stem; LayerNorm, no BatchNorm",
}

DEFAULT_WIDTH = 64
# Whose width can be set, the default model first.
WIDE_MODELS = ("preact_resnet18", "encoder_resnet18")
_MIN_SIZE = {"vgg19_bn": 16}  # others: 8, below which their three halvings leave no map
_DEFAULT_MIN_SIZE = 8


class ModelError(ValueError):
    """A model that cannot be built as asked: one line with argument, value and what is allowed."""


def build_model(
    name: str,
    *,
    num_classes: int,
    width: int | None = None,
    image_size: int = 32,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    generator: torch.Generator | None = None,
) -> Classifier:
    """A freshly initialised model on the CPU in float32, in training mode.

    Args:
        name: a key of ``MODELS``.
        num_classes: outputs of the head, 2 or more.
        width: channels of the first stage, 1 or more, for ``preact_resnet18`` and
            ``encoder_resnet18`` (default 64); None for the others.
        image_size: side of the square images in pixels. The models are fully convolutional, so it only decides whether
            the name is allowed: 8 or more, ``vgg19_bn`` 16 or more. The last maps have ``image_size / 8`` positions a
            side (VGG ``/ 16``); where that is 1, batches of one image cannot be trained through BatchNorm.
        mean, std: three numbers each, in units of [0, 1] pixels; std > 0. Kept in the model as buffers.
        generator: the only source of the initial weights (one integer is drawn from it). Without one the weights are
            those of seed 0: for models that are about to be loaded.

    The families' own initialisers know only PyTorch's global CPU generator. It is seeded for the length of this call
    and put back, so nobody else's numbers change; a second thread that draws from it meanwhile would see the seed.

    Raises:
        ModelError: unknown name, or an argument that does not fit it.
    """
    _check(name, num_classes, width, image_size, mean, std)
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    # devices=[] and the CPU generator's own manual_seed: torch.manual_seed would reseed the GPUs as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return _build(name, num_classes, width, mean, std)


def _check(
    name: str, num_classes: int, width: int | None, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"model: unknown name {name!r}; {hint}known: {', '.join(MODELS)}")
    if num_classes < 2:
        raise ModelError(f"num_classes: must be 2 or more, got {num_classes}")
    if width is not None and name not in WIDE_MODELS:
        raise ModelError(
            f"width: {name} has a fixed width, got {width}; leave it out, or use {' or '.join(WIDE_MODELS)}"
        )
    if width is not None and width < 1:
        raise ModelError(f"width: must be 1 or more, got {width}")
    smallest = _MIN_SIZE.get(name, _DEFAULT_MIN_SIZE)
    if image_size < smallest:
        raise ModelError(f"image_size: {name} needs {smallest} pixels or more, got {image_size}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(f"mean, std: must be three numbers each with std > 0, got {tuple(mean)} and {tuple(std)}")


def _build(name: str, num_classes: int, width: int | None, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    if name == "preact_resnet18":
        from trainables.models.preact_resnet import preact_resnet18

        return preact_resnet18(num_classes, DEFAULT_WIDTH if width is None else width, mean, std)
    if name == "encoder_resnet18":
        from trainables.models.encoder import encoder_resnet18  # here, as below

        return encoder_resnet18(num_classes, DEFAULT_WIDTH if width is None else width, mean, std)
    from trainables.models import torchvision_families  # here: torchvision takes a second to import

    # The functions there carry the registered names; a test builds every one of them.
    model: Classifier = getattr(torchvision_families, name)(num_classes, mean, std)
    return model
