"""What every model must hold, whatever its architecture: the promises of `Classifier`.

Every check is a plain function of a `Subject` and fails by ``AssertionError``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from superft.testing.refusals import refusal
from trainables.models.build import MODELS, ModelError, build_model
from trainables.models.classifier import Classifier, Head

# Small enough for every model that shrinks its maps by 16, and for a quick check.
LARGEST_SMALLEST = 32
CLASSES = 3


def names() -> list[str]:
    """All models that can be asked for by name, sorted."""
    return MODELS.names()


def has_width(name: str) -> bool:
    """Whether the number of channels of a model can be set."""
    return name in MODELS and MODELS.get(name).is_wide


@dataclass
class Subject:
    """A registered model, built once for the checks that leave it as it is.

    Args:
        name: of the model.
        image_size: side of the images that it is tried on, in pixels.
    """

    name: str
    image_size: int = 32

    def build(self, seed: int = 0, *, width: int | None = None, image_size: int | None = None) -> Classifier:
        """A new model for three classes, narrow where the width can be set."""
        if width is None and has_width(self.name):
            width = 4
        return build_model(
            self.name,
            num_classes=CLASSES,
            width=width,
            image_size=image_size or self.image_size,
            generator=torch.Generator().manual_seed(seed),
        )

    @cached_property
    def model(self) -> Classifier:
        """Of seed 0, in eval mode. Not to be modified."""
        return self.build().eval()

    @cached_property
    def other(self) -> Classifier:
        """Of seed 1. Not to be modified."""
        return self.build(1)

    def images(self, count: int, size: int | None = None) -> Tensor:
        """Random float images in [0, 1], (count, 3, H, W)."""
        side = size or self.image_size
        return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def walk(model: Classifier, images: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of the stage, its input, its output) for each stage in order."""
    maps = model.normalize(images)
    for number, stage in enumerate(model.stages):
        after = stage(maps)
        yield number, maps, after
        maps = after


def stages_map_maps_to_maps_that_never_grow(subject: Subject) -> None:
    """One stage or more; each gives maps (N, C, H, W) for maps, as large or smaller: a known layer is a known place."""
    assert len(subject.model.stages) >= 1, f"model {subject.name}: no stages"
    assert len(subject.model.stages) == len(subject.build(1).stages), (
        f"model {subject.name}: a changing number of stages"
    )
    with torch.no_grad():
        for number, before, after in walk(subject.model, subject.images(2)):
            what = f"model {subject.name}: stage {number}"
            assert after.dim() == 4, f"{what} must give maps (N, C, H, W), got shape {tuple(after.shape)}"
            assert len(after) == 2, f"{what} changes the number of images"
            assert after.shape[2] <= before.shape[2], f"{what} makes its maps larger"
            assert after.shape[3] <= before.shape[3], f"{what} makes its maps larger"


def stages_neck_and_head_are_the_whole_model(subject: Subject) -> None:
    """The parts, called one after the other, are the forward pass; `classifier` is the only linear layer after them."""
    model, images = subject.model, subject.images(2)
    assert isinstance(model.classifier, nn.Linear), f"model {subject.name}: classifier must be a Linear"
    linear = [module for module in model.neck.modules() if isinstance(module, nn.Linear)]
    assert not linear, f"model {subject.name}: the neck has a linear layer; it belongs into the head"
    with torch.no_grad():
        *_, (_, _, maps) = walk(model, images)
        vectors = model.embed(images)
        assert vectors.dim() == 2, f"model {subject.name}: embed must give (N, D), got {tuple(vectors.shape)}"
        torch.testing.assert_close(model.neck(maps), vectors)
        features = model.features(images)
        assert features.shape == (2, model.classifier.in_features)
        torch.testing.assert_close(model.head_features(vectors), features)
        torch.testing.assert_close(model.logits(features), model(images))
        torch.testing.assert_close(model.classifier(features), model(images))
        torch.testing.assert_close(Head(model)(vectors), model(images))


def logits_are_float32_per_class(subject: Subject) -> None:
    """Also under bfloat16 autocast, where the classes of a close image would tie."""
    model, images = subject.model, subject.images(2)
    assert model.num_classes == CLASSES == model.classifier.out_features
    with torch.no_grad():
        assert model(images).shape == (2, CLASSES)
        assert model(images).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(images).dtype == torch.float32, f"model {subject.name}: logits must be float32 under autocast"


def last_block_is_the_end_of_the_last_stage(subject: Subject) -> None:
    """Defenses tune it alone: it has parameters, and they are part of the last stage's."""
    own = {id(parameter) for parameter in subject.model.last_block.parameters()}
    assert own, f"model {subject.name}: last_block has no parameters"
    assert own <= {id(parameter) for parameter in subject.model.stages[-1].parameters()}


def reset_head_draws_from_its_generator_alone(subject: Subject) -> None:
    """The same generator gives the same head, another one another; all before the head stays, the global state too."""

    def heads(seed: int) -> Classifier:
        model = copy.deepcopy(subject.model)
        model.reset_head(torch.Generator().manual_seed(seed))
        return model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        one, same, other = heads(1), heads(1), heads(2)
        assert torch.equal(torch.get_rng_state(), before), (
            f"model {subject.name}: reset_head moves the global generator"
        )
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert not torch.equal(one.classifier.weight, subject.model.classifier.weight)
    images = subject.images(2)
    with torch.no_grad():
        torch.testing.assert_close(one.embed(images), subject.model.embed(images), rtol=0, atol=0)


def initial_weights_come_from_the_generator_alone(subject: Subject) -> None:
    """Same seed, same weights, whatever the global random state, which stays as it was; another seed, other ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(321)
        before = torch.get_rng_state()
        again = subject.build(0).state_dict()
        assert torch.equal(torch.get_rng_state(), before), f"model {subject.name}: building moves the global generator"
    for key, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, again[key]), f"model {subject.name}: {key} depends on the global random state"
    for (key, one), other in zip(subject.model.named_parameters(), subject.other.parameters(), strict=True):
        if key.endswith("weight") and one.dim() > 1:
            assert not torch.equal(one, other), f"model {subject.name}: {key} is the same for every seed"


def training_draws_nothing_from_the_global_generator(subject: Subject) -> None:
    """Dropout or stochastic depth would make a trial depend on the state of the process; see `PrivateDropout`."""
    model = copy.deepcopy(subject.model).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        model(subject.images(4))
        assert torch.equal(torch.get_rng_state(), before), (
            f"model {subject.name}: a forward pass in training mode draws from the global generator"
        )


def a_state_dict_brings_everything_back(subject: Subject) -> None:
    """Through safetensors, into a model of other weights: the same logits, normalisation included."""
    stored = save({key: tensor.contiguous() for key, tensor in subject.model.state_dict().items()})
    loaded = copy.deepcopy(subject.other)
    loaded.load_state_dict(load(stored))
    images = subject.images(2)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), subject.model(images)), (
            f"model {subject.name} is another one after save and load: something it needs is no parameter or buffer"
        )


def normalisation_is_inside(subject: Subject) -> None:
    """Images come in as pixels in [0, 1]; mean and std are those that the model was built with."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    width = 4 if has_width(subject.name) else None
    model = build_model(
        subject.name,
        num_classes=CLASSES,
        width=width,
        image_size=subject.image_size,
        mean=mean,
        std=std,
        generator=torch.Generator().manual_seed(0),
    ).eval()
    images = subject.images(2)
    by_hand = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model.normalize(images), by_hand)
        torch.testing.assert_close(model(images), subject.model(by_hand), rtol=1e-3, atol=1e-4)


def no_stage_overwrites_what_it_received(subject: Subject) -> None:
    """A forward hook on a stage sees what the next one got: an in-place ReLU at its start would change that."""
    with torch.no_grad():
        maps = subject.model.normalize(subject.images(1))
        parts = [(f"stage {number}", stage) for number, stage in enumerate(subject.model.stages)]
        for what, part in [*parts, ("the neck", subject.model.neck)]:
            kept = maps.clone()
            after = part(maps)
            assert torch.equal(maps, kept), f"model {subject.name}: {what} overwrites its input in place"
            maps = after


def eval_mode_is_deterministic_and_treats_images_one_by_one(subject: Subject) -> None:
    """The same images, the same logits, whoever else is in the batch."""
    images = subject.images(3)
    with torch.no_grad():
        together = subject.model(images)
        assert torch.equal(subject.model(images), together), f"model {subject.name}: eval mode is not deterministic"
        alone = torch.cat([subject.model(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def every_parameter_learns(subject: Subject) -> None:
    """A training step reaches every parameter with a finite gradient."""
    model = copy.deepcopy(subject.model).train()
    loss = nn.functional.cross_entropy(model(subject.images(4)), torch.tensor([0, 2, 1, 0]))
    loss.backward()
    assert bool(loss.isfinite())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"model {subject.name}: {name} gets no gradient"
        assert bool(parameter.grad.isfinite().all()), f"model {subject.name}: {name} gets a gradient that is not finite"


def width_scales_the_parameters(subject: Subject) -> None:
    """Where the width can be set: twice as many channels have more parameters; else a width is refused in one line."""
    if not has_width(subject.name):
        refused = refusal(lambda: subject.build(width=8), ModelError)
        assert refused is not None, f"model {subject.name} has a fixed width and takes width=8 without a word"
        assert "width" in refused
        return
    narrow, wide = (sum(p.numel() for p in subject.build(width=width).parameters()) for width in (4, 8))
    assert wide > narrow, f"model {subject.name}: width 8 has {wide} parameters, width 4 {narrow}"


def works_at_its_smallest_image_size_and_refuses_smaller(subject: Subject) -> None:
    """What `build_model` accepts must run, in training and after; what it cannot do, it refuses in one line."""
    smallest = 1
    while (refused := refusal(partial(subject.build, image_size=smallest), ModelError)) is not None:
        assert "image_size" in refused
        assert smallest < LARGEST_SMALLEST, f"model {subject.name} refuses images of {smallest} pixels"
        smallest += 1
    assert smallest > 1, f"model {subject.name} is built for images of one pixel: refuse what is too small"
    for size in (smallest, 2 * smallest):
        images, model = subject.images(2, size), copy.deepcopy(subject.model)
        try:
            with torch.no_grad():
                model.train()(images)
                found = model.eval()(images)
        except (RuntimeError, ValueError) as error:
            raise AssertionError(
                f"model {subject.name} is built for images of {size} pixels and then fails ({error}): refuse the size"
            ) from error
        assert found.shape == (2, CLASSES)
        assert bool(found.isfinite().all())
