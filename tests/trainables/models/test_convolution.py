"""Claims of trainables.models.convolution: the matrix form is the convolution, and is taken only where it is faster."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.models.build import build_model
from trainables.models.convolution import FEWEST_CHANNELS, LARGEST_SIDE, Conv3x3, PatchProduct

stride = pytest.mark.parametrize("stride", [1, 2])


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@stride
@pytest.mark.parametrize("size", [(5, 4), (4, 4), (1, 1)])
def test_the_product_is_the_convolution(stride: int, size: tuple[int, int]) -> None:
    x, weight = drawn(2, 3, *size), drawn(4, 3, 3, 3)
    torch.testing.assert_close(
        PatchProduct.apply(x, weight, stride), functional.conv2d(x, weight, stride=stride, padding=1)
    )


@stride
def test_its_derivatives_are_right_and_may_be_derived_again(stride: int) -> None:
    inputs = drawn(2, 2, 4, 3).requires_grad_(), drawn(3, 2, 3, 3).requires_grad_()

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return PatchProduct.apply(x, weight, stride)

    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_gradients_per_sample_are_those_of_single_samples() -> None:
    """As Fisher information takes them."""
    x, weight = drawn(3, 2, 4, 4), drawn(3, 2, 3, 3)

    def loss(weight: Tensor, image: Tensor) -> Tensor:
        return PatchProduct.apply(image[None], weight, 1).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for image, gradient in zip(x, together, strict=True):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(weight, image))


@stride
def test_bfloat16_results_agree_with_float32(stride: int) -> None:
    """Forward and both gradients, within four roundings to bfloat16's 8 bits."""
    layer = Conv3x3(FEWEST_CHANNELS, 32, stride)
    x = drawn(4, FEWEST_CHANNELS, LARGEST_SIDE, LARGEST_SIDE, dtype=torch.float32).requires_grad_()
    gradient = drawn(4, 32, LARGEST_SIDE // stride, LARGEST_SIDE // stride, dtype=torch.float32)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = layer(x)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        found.append((out.detach().float(), *torch.autograd.grad(out, (x, layer.weight), gradient.to(out.dtype))))
    for exact, rounded in zip(*found, strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 4 * 2**-8


@pytest.mark.parametrize(
    ("channels", "side", "autocast", "taken"),
    [
        (FEWEST_CHANNELS, LARGEST_SIDE, True, True),
        (FEWEST_CHANNELS, LARGEST_SIDE, False, False),
        (FEWEST_CHANNELS - 1, LARGEST_SIDE, True, False),
        (FEWEST_CHANNELS, LARGEST_SIDE + 1, True, False),
    ],
)
def test_the_product_is_taken_only_where_it_is_faster(
    channels: int, side: int, autocast: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, apply = [], PatchProduct.apply
    monkeypatch.setattr(PatchProduct, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        Conv3x3(channels, 2)(drawn(1, channels, side, side, dtype=torch.float32))
    assert bool(calls) == taken


def test_a_layer_is_exchangeable_with_torchs() -> None:
    torch_layer, ours = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), Conv3x3(3, 4, 2)
    ours.load_state_dict(torch_layer.state_dict())
    x = drawn(2, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(ours(x), torch_layer(x))


def test_a_wide_model_trains_to_the_same_gradients_with_either_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all layers; a mistake in layout or stride would leave unrelated gradients, rounding leaves close ones."""
    model = build_model("preact_resnet18", num_classes=3, width=64, generator=torch.Generator().manual_seed(0))
    images, labels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3

    def gradients(enabled: bool) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = functional.cross_entropy(model.eval()(images), labels)
        weights = [p for name, p in model.named_parameters() if "stages.4" in name]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    exact, ours = gradients(False), gradients(True)
    monkeypatch.setattr(Conv3x3, "_is_slow", lambda self, x: False)
    torchs = gradients(True)
    # Ours may be as far from float32 as torch's bfloat16 is, not further (half as much again, for its own rounding).
    assert float((ours - exact).norm()) < 1.5 * float((torchs - exact).norm())
