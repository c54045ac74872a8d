"""Claims of trainables.foreign.adapter: the parts that defenses need are found, or it is said why there are none."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.foreign.nets import MEAN, STD, Headless, PlainCNN, tiny_vit
from trainables.foreign.adapter import ForeignClassifier, adapt, find_parts, unwrapped
from trainables.models.build import ModelError

SIZE = 16


def _adapted(model: nn.Module) -> ForeignClassifier:
    found, _ = adapt(model.eval(), image_size=SIZE, mean=MEAN, std=STD)
    assert isinstance(found, ForeignClassifier)
    return found.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("make", [PlainCNN, tiny_vit, Headless])
def test_the_adapted_model_gives_the_same_logits_of_unnormalised_images(make: type[nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    model = make().eval()
    normalised = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        # The head alone is computed once more: sums in another order differ in the last digits of float32.
        torch.testing.assert_close(_adapted(model)(images), model(normalised), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [PlainCNN, tiny_vit])
def test_features_go_through_the_head_to_the_logits_and_carry_gradients(make: type[nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    model = _adapted(make())
    features = model.features(images)
    assert features.shape == (4, model.classifier.in_features)
    assert torch.equal(model.logits(features), model(images))
    features.sum().backward()
    first = next(parameter for parameter in model.parameters())
    assert first.grad is not None
    assert bool(first.grad.abs().sum() > 0)


def test_stages_are_the_last_layers_at_each_size_of_maps() -> None:
    parts = find_parts(PlainCNN().eval(), image_size=SIZE, mean=MEAN, std=STD)
    assert parts.stages == ("bn1", "bn2", "block3")
    assert parts.sizes == ((16, 16), (8, 8), (4, 4))
    assert parts.last_block == "block3.0"


def test_the_stages_of_a_torchvision_resnet_are_its_layers() -> None:
    from torchvision.models import resnet18

    parts = find_parts(resnet18(num_classes=7).eval(), image_size=64, mean=MEAN, std=STD)
    assert (parts.num_classes, parts.head, parts.last_block) == (7, "fc", "layer4.1")
    assert parts.stages[1:] == ("layer1", "layer2", "layer3", "layer4")
    assert set(parts.lacking) == {"stages"}


def test_what_a_model_lacks_is_said_with_the_reason() -> None:
    vit = find_parts(tiny_vit().eval(), image_size=SIZE, mean=MEAN, std=STD)
    assert vit.head == "heads.head"
    assert {"maps", "batch_norm"} <= set(vit.lacking)
    assert vit.last_block == "encoder.layers.encoder_layer_1"
    headless = find_parts(Headless().eval(), image_size=SIZE, mean=MEAN, std=STD)
    assert headless.head is None
    assert "nn.Linear" in headless.lacking["head"]


def test_a_convolution_whose_weight_is_computed_cannot_be_masked() -> None:
    model = PlainCNN()
    nn.utils.parametrizations.spectral_norm(model.conv2)
    found = find_parts(model.eval(), image_size=SIZE, mean=MEAN, std=STD)
    assert found.lacking["convolutions"] == "the weight of its conv2 is computed from others"


class _WithSoftmax(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


def test_the_logits_are_found_before_a_softmax(images: Tensor) -> None:
    torch.manual_seed(0)
    plain = PlainCNN().eval()
    model = _adapted(_WithSoftmax(plain))
    with torch.no_grad():
        torch.testing.assert_close(model(images), _adapted(plain)(images))


def test_a_copy_has_layers_of_its_own(images: Tensor) -> None:
    torch.manual_seed(0)
    model = _adapted(PlainCNN())
    before = model(images).detach()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.classifier.weight.zero_()
    assert torch.equal(model(images).detach(), before)
    assert bool((copied.features(images) @ copied.classifier.weight.T == 0).all())
    assert "classifier.weight" not in model.state_dict()  # its one name is the user's
    assert {name.removeprefix("inner.") for name in model.state_dict()} >= set(PlainCNN().state_dict())


def test_what_cannot_be_repaired_is_refused_in_one_line() -> None:
    refused = {
        "grey images": lambda: _adapted(PlainCNN(channels=1)),
        "--size": lambda: adapt(tiny_vit(), image_size=24, mean=MEAN, std=STD),
        "--std must be above 0": lambda: adapt(PlainCNN(), image_size=SIZE, mean=MEAN, std=(1.0, 0.0, 1.0)),
        "logits of N images": lambda: _adapted(nn.Conv2d(3, 4, 3)),
        "quantised layer": lambda: unwrapped(torch.ao.nn.quantized.Linear(3, 2)),
        "TorchScript": lambda: unwrapped(torch.jit.script(nn.Linear(3, 2))),
        "no shape yet": lambda: unwrapped(nn.LazyLinear(2)),
    }
    for words, attempt in refused.items():
        with pytest.raises(ModelError, match=words) as told:
            attempt()
        assert "\n" not in str(told.value)


def test_compiled_and_parallel_models_are_looked_into() -> None:
    model = PlainCNN()
    assert unwrapped(torch.compile(nn.DataParallel(model))) is model
