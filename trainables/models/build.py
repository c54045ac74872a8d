"""Models by name: each takes images in [0, 1], normalises inside, and has the parts of ``Classifier``.

A model is one function from (num_classes, width, mean, std) to a `Classifier`, or from (num_classes, mean, std) where
its width is fixed, with `register` above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.models.classifier import Classifier
from trainables.registry import Registry, SettingError

MIN_SIZE = 8  # below it, three halvings leave no map


class ModelError(ValueError):
    """A model that cannot be built as asked: one line with argument, value and what is allowed."""


@dataclass(frozen=True)
class Model:
    """A registered architecture.

    Args:
        description: one line for ``superft list models``.
        build: (num_classes, width, mean, std) -> model, without ``width`` where that is fixed.
        min_size: smallest side of images in pixels.
        default_width: channels of the first stage; None: its width is fixed.
    """

    description: str
    build: Callable[..., Classifier]
    min_size: int = MIN_SIZE
    default_width: int | None = None

    @property
    def is_wide(self) -> bool:
        """Whether its width can be set."""
        return self.default_width is not None


MODELS: Registry[Model] = Registry("model", "trainables.models")

Builder = Callable[..., Classifier]


def register(
    name: str, description: str, *, min_size: int = MIN_SIZE, default_width: int | None = None
) -> Callable[[Builder], Builder]:
    """Decorator: make the model that a function builds known as ``name``; see `Model`."""

    def enter(build: Builder) -> Builder:
        MODELS.add(name, Model(description, build, min_size, default_width))
        return build

    return enter


def wide_models() -> list[str]:
    """Names of the models whose width can be set."""
    return [name for name in MODELS.names() if MODELS.get(name).is_wide]


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
        name: registered in ``MODELS``.
        num_classes: outputs of the head, 2 or more.
        width: channels of the first stage, 1 or more, where the model lets it be set; None: its own.
        image_size: side of the square images in pixels. The models are fully convolutional, so it only decides whether
            the name is allowed (`Model.min_size`). The last maps have about ``image_size / 8`` positions
            a side (VGG ``/ 16``); where that is 1, batches of one image cannot be trained through BatchNorm.
        mean, std: three numbers each, in units of [0, 1] pixels; std > 0. Kept in the model as buffers.
        generator: the only source of the initial weights (one integer is drawn from it). Without one the weights are
            those of seed 0: for models that are about to be loaded.

    The families' own initialisers know only PyTorch's global CPU generator. It is seeded for the length of this call
    and put back, so nobody else's numbers change; a second thread that draws from it meanwhile would see the seed.

    Raises:
        ModelError: unknown name, or an argument that does not fit it.
    """
    model = _checked(name, num_classes, width, image_size, mean, std)
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    channels = model.default_width if width is None else width
    task = (num_classes, *(() if channels is None else (channels,)), mean, std)
    # devices=[] and the CPU generator's own manual_seed: torch.manual_seed would reseed the GPUs as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        built = model.build(*task)
    if not isinstance(built, Classifier):
        raise ModelError(f"model {name}: its function must return a Classifier, got {type(built).__name__}")
    return built


@torch.no_grad()
def check_output(model: Classifier, name: str, image_size: int) -> None:
    """Refuse a model that does not make one finite logit per class of float images (ModelError)."""
    training = model.training
    scores = model.eval()(torch.full((2, 3, image_size, image_size), 0.5))
    model.train(training)
    if not isinstance(scores, Tensor) or scores.shape != (2, model.num_classes):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ModelError(
            f"model {name}: must give (N, {model.num_classes}) logits of N images, got {shape} of 2 images"
        )
    if not bool(scores.isfinite().all()):
        raise ModelError(f"model {name}: gives logits that are not finite, of images of grey 0.5")


def _checked(
    name: str, num_classes: int, width: int | None, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Model:
    try:
        model = MODELS.get(name)
    except SettingError as error:
        raise ModelError(str(error)) from error
    if num_classes < 2:
        raise ModelError(f"num_classes: must be 2 or more, got {num_classes}")
    if width is not None and not model.is_wide:
        raise ModelError(
            f"width: {name} has a fixed width, got {width}; leave it out, or use {' or '.join(wide_models())}"
        )
    if width is not None and width < 1:
        raise ModelError(f"width: must be 1 or more, got {width}")
    if image_size < model.min_size:
        raise ModelError(f"image_size: {name} needs {model.min_size} pixels or more, got {image_size}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(f"mean, std: must be three numbers each with std > 0, got {tuple(mean)} and {tuple(std)}")
    return model
