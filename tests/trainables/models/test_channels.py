"""Claims of trainables.models.channels: conv -> BatchNorm pairs of every model, and how far a channel can amplify."""

import functools

import pytest
import torch
from torch import Tensor, nn

from trainables.models.build import MODELS, build_model
from trainables.models.channels import ConvNorm, lipschitz_bounds, outliers, spectral_norms, trace_convolutions
from trainables.models.classifier import Classifier


@functools.cache
def model_named(name: str) -> Classifier:
    width = 2 if name == "preact_resnet18" else None
    return build_model(name, num_classes=4, width=width, generator=torch.Generator().manual_seed(0)).eval()


def preact_pairs() -> list[ConvNorm]:
    pairs = []
    for stage in range(1, 5):
        for block in range(2):
            place = f"stages.{stage}.{block}"
            previous = f"stages.{stage}.0" if block else f"stages.{stage - 1}.1"
            first = stage == 1 and block == 0
            pairs.append(ConvNorm("stages.0.0" if first else f"{previous}.conv2", f"{place}.bn1", direct=first))
            pairs.append(ConvNorm(f"{place}.conv1", f"{place}.bn2", direct=True))
    return pairs


def resnet_pairs(blocks: tuple[int, ...]) -> list[ConvNorm]:
    pairs = [ConvNorm("stages.0.0", "stages.0.1", direct=True)]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            place = f"stages.{stage}.{block}"
            pairs += [ConvNorm(f"{place}.conv{i}", f"{place}.bn{i}", direct=True) for i in (1, 2)]
            if stage > 1 and block == 0:
                pairs.append(ConvNorm(f"{place}.downsample.0", f"{place}.downsample.1", direct=True))
    return pairs


def densenet_pairs() -> list[ConvNorm]:
    pairs = [ConvNorm("stages.0.0", "stages.0.1", direct=True)]
    for stage, layers in enumerate((6, 12, 24, 16), start=1):
        child = 0 if stage == 1 else 1  # behind the transition
        place = f"stages.{stage}.{child}"
        if stage > 1:  # the pooled transition is all that enters the block's first layer
            pairs.append(ConvNorm(f"stages.{stage}.0.conv", f"{place}.denselayer1.norm1", direct=False))
        layer = (f"{place}.denselayer{i}" for i in range(1, layers + 1))
        pairs += [ConvNorm(f"{name}.conv1", f"{name}.norm2", direct=True) for name in layer]
    return pairs


PAIRS = {
    "preact_resnet18": preact_pairs(),
    "resnet18": resnet_pairs((2, 2, 2, 2)),
    "encoder_resnet18": resnet_pairs((2, 2, 2, 2)),
    "resnet34": resnet_pairs((3, 4, 6, 3)),
    "vgg19_bn": [
        ConvNorm(f"stages.{stage}.{block + (stage > 0)}.0", f"stages.{stage}.{block + (stage > 0)}.1", direct=True)
        for stage, depth in enumerate((2, 2, 4, 4, 4))
        for block in range(depth)
    ],
    "densenet121": densenet_pairs(),
    "convnext_tiny": [],
    "vit_small": [],
    "airbench_cnn": [
        ConvNorm("stages.0.0", "stages.0.1", direct=True),
        *(
            ConvNorm(f"stages.{group}.{block}.0", f"stages.{group}.{block}.1", direct=True)
            for group in (1, 2, 3)
            for block in (0, 1)
        ),
    ],
}


@pytest.mark.parametrize("name", MODELS.names())
def test_pairs_of_every_registered_model(name: str) -> None:
    model = model_named(name)
    pairs, order = trace_convolutions(model)
    modules = dict(model.named_modules())
    for pair in pairs:
        conv, norm = modules[pair.conv], modules[pair.norm]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert conv.out_channels == norm.num_features
    assert len({pair.norm for pair in pairs}) == len(pairs)
    assert len({pair.conv for pair in pairs}) == len(pairs)
    convolutions = [key for key, module in modules.items() if isinstance(module, nn.Conv2d)]
    assert sorted(order) == sorted(convolutions)
    if name == "mobilenet_v2":  # every convolution has a BN of its own, the depthwise ones included
        assert sorted(pair.conv for pair in pairs) == sorted(convolutions)
        assert all(pair.direct for pair in pairs)
        following = dict(zip(modules, list(modules)[1:], strict=False))
        assert all(following[pair.conv] == pair.norm for pair in pairs)
    else:
        assert set(pairs) == set(PAIRS[name])


def test_batch_norm_after_a_downsampling_sum_is_not_paired_with_the_shortcut() -> None:
    # Module order lists the 1x1 shortcut right before the next block's BN; its input is the sum with conv2.
    pairs, _ = trace_convolutions(model_named("preact_resnet18"))
    assert ConvNorm("stages.2.0.conv2", "stages.2.1.bn1", direct=False) in pairs
    assert not any("shortcut" in pair.conv for pair in pairs)


def test_an_activation_in_place_between_convolution_and_norm_is_no_pair() -> None:
    stage = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier([stage], neck, nn.Linear(4, 2), (0.0,) * 3, (1.0,) * 3)
    pairs, _ = trace_convolutions(model)
    assert pairs == [ConvNorm("stages.0.0", "stages.0.2", direct=False)]


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 32, 3, 3), (6, 1, 3, 3), (7, 16, 1, 1)])
def test_spectral_norms_are_those_of_a_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    kernels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.matrix_norm(kernels.double().flatten(2), ord=2)
    torch.testing.assert_close(spectral_norms(kernels), expected, rtol=1e-9, atol=1e-12)


def test_bound_is_scale_over_deviation_times_the_largest_singular_value() -> None:
    model = build_model("airbench_cnn", num_classes=4, width=4, generator=torch.Generator().manual_seed(0))
    pair = ConvNorm("stages.1.0.0", "stages.1.0.1", direct=True)
    norm = model.get_submodule(pair.norm)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-3.0, 1.0, 0.0, 0.5]))
        norm.running_var.copy_(torch.tensor([4.0, 0.01, 1.0, 0.0]))
    sizes = spectral_norms(model.get_parameter(f"{pair.conv}.weight"))
    gains = torch.tensor([3 / 4.00001**0.5, 1 / 0.01001**0.5, 0.0, 0.5 / 1e-5**0.5], dtype=torch.float64)
    torch.testing.assert_close(lipschitz_bounds(model, pair), gains * sizes, rtol=1e-5, atol=0.0)


def test_outliers_of_a_hand_computed_layer() -> None:
    bounds = torch.tensor([1.0] * 15 + [9.0])  # mean 1.5, sample standard deviation 2.0: 9 is 3.75 of them above
    assert outliers(bounds, 3.74).nonzero().tolist() == [[15]]
    assert not outliers(bounds, 3.76).any()
    assert not outliers(-bounds, 3.0).any()  # far below the others is no reason
    assert not outliers(Tensor([5.0]), 0.0).any()
