"""float32 is float32 in trials, victims and training, and the process's switches are as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy import toy_dataset
from trainables.data.images import Dataset
from trainables.defenses.trigger_inversion import Inversion, invert_triggers
from trainables.machine.float32 import exact_float32
from trainables.training.loop import Counters, cross_entropy, fit, refresh_statistics
from trainables.training.predict import predict
from trainables.training.trainer import Trainer

cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul


def switches() -> dict[str, Any]:
    """All that torch lets one read; what it refuses to tell is None."""

    def read(value: Callable[[], Any]) -> Any:
        try:
            return value()
        except (RuntimeError, AttributeError):
            return None

    found = {
        "convolutions, old": lambda: cudnn.allow_tf32,
        "products, old": lambda: matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision,
    }
    for name, holder in (("conv", cudnn), ("rnn", cudnn), ("matmul", torch.backends.mkldnn)):
        found[f"{holder.__name__} {name}"] = lambda holder=holder, name=name: getattr(holder, name).fp32_precision
    found["cuda matmul"] = lambda: matmul.fp32_precision
    return {name: read(value) for name, value in found.items()}


def is_exact() -> bool:
    """What torch's kernels would do now on a card."""
    return not cudnn.allow_tf32 and not matmul.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


@pytest.fixture(params=["as torch starts", "fast products", "new switches", "all by one switch"])
def before(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The switches as somebody may have set them, and back to the start afterwards."""
    kind = request.param
    if kind in ("new switches", "all by one switch") and not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has only the old switches")
    if kind == "fast products":
        torch.set_float32_matmul_precision("medium")
    elif kind == "new switches":
        matmul.fp32_precision = "tf32"
        cudnn.conv.fp32_precision = "ieee"
    elif kind == "all by one switch":
        torch.backends.fp32_precision = "tf32"
    yield switches()
    if hasattr(matmul, "fp32_precision"):
        torch.backends.fp32_precision = "none"
    cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_tf32_is_off_within_and_everything_is_as_before_afterwards(before: dict[str, Any]) -> None:
    with exact_float32():
        assert is_exact()
        with exact_float32():
            pass
        assert is_exact()
    assert switches() == before
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert switches() == before


class Watching(nn.Module):
    """A linear classifier that notes, forward and on the way back, whether float32 is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 10), list[bool]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(is_exact())
        logits: Tensor = self.layer(images.mean((2, 3)))
        if logits.requires_grad:
            logits.register_hook(lambda _gradient: self.seen.append(is_exact()))
        return logits


def test_training_and_measuring_are_exact_forward_and_backward(toy: Dataset, trainer: Trainer) -> None:
    assert cudnn.allow_tf32, "convolutions are not exact by default"
    data = toy_dataset(train=20, test=10)
    ways: list[Callable[[Any], object]] = [
        lambda model: fit(model, data.train, steps=2, lr_at=lambda _: 0.1, generator=torch.Generator(), batch_size=10),
        lambda model: predict(model, data.test.images),
        lambda model: refresh_statistics(model, data.test.images, counters=Counters()),
        lambda model: invert_triggers(model, data.train.images, trainer, Inversion(epochs=1), range(3)),
    ]
    for way in ways:
        model = Watching()
        way(model)
        assert model.seen
        assert all(model.seen)
    model = Watching()
    cross_entropy(model, data.train.images.float(), data.train.labels).backward()
    assert model.seen == [False, False]
