"""A model's predictions on images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainables.data.images import in_parts, to_float
from trainables.machine.float32 import exact_float32
from trainables.training.loop import Counters, DivergedError, autocast, evaluating


@exact_float32()
@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 1024,
    precision: str = "auto",
    counters: Counters | None = None,
) -> Tensor:
    """Predicted classes, int64 (N,), of uint8 images (N, 3, H, W), in eval mode (restored afterwards).

    Raises:
        DivergedError: the model gives an output that is NaN or infinite, of which argmax would make class 0.
    """
    predictions = [
        scores.argmax(1)
        for scores in _outputs(model, images, batch_size=batch_size, precision=precision, counters=counters)
    ]
    return torch.cat(predictions) if predictions else torch.zeros(0, dtype=torch.int64, device=images.device)


@exact_float32()
@torch.no_grad()
def logits(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 1024,
    precision: str = "auto",
    counters: Counters | None = None,
) -> Tensor:
    """The model's outputs before the softmax, float64 (N, K) on the CPU, under the same conditions as `predict`.

    Raises:
        DivergedError: as `predict`.
    """
    parts = [
        scores.double().cpu()
        for scores in _outputs(model, images, batch_size=batch_size, precision=precision, counters=counters)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, 0, dtype=torch.float64)


def _outputs(
    model: nn.Module, images: Tensor, *, batch_size: int, precision: str, counters: Counters | None
) -> Iterator[Tensor]:
    """The model's outputs batch by batch; DivergedError after the last where one of them is not finite."""
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    with evaluating(model), autocast(images.device, precision):
        for batch in in_parts(images, batch_size):
            scores = model(to_float(batch))
            finite &= scores.isfinite().all()
            if counters is not None:
                counters.forward_samples += len(batch)
            yield scores
    if not bool(finite):  # asked once: it waits for the device
        raise DivergedError("the model's outputs are not finite")
