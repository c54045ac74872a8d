"""How many classes of a trigger inversion go through the model in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.machine.device_meter import free_bytes

# Stamped images per pass on a CPU, (classes x batch), and the pixels of them all: a map grows with the image's area.
PASS_IMAGES, PASS_PIXELS = 1024, 1024 * 32 * 32
# On a card: of what autograd keeps for the way back, at most so many bytes, and at most this share of the free memory.
# With the gradients and the workspaces of the way back the pass takes about half as much again. More bytes would not be
# faster: these are 4,000 images of 32 pixels in a ResNet-18 of width 64 under bfloat16, which fill any card.
PASS_BYTES = 8 * 2**30
FREE_SHARE = 0.5


class ClassPasses:
    """Splits the classes into passes by what the device can hold.

    On a CPU by a fixed number of images, of larger ones fewer, but always one class. On a card by bytes, which depend
    on the model and grow with the image's area: the first pass takes one class, and what autograd keeps of it says how
    many fit into those that follow.

    Args:
        model: which the stamped images go through; its own weights do not count.
        device: where.
        images: of a class in a pass, >= 1.
        pixels: of an image.
    """

    def __init__(self, model: nn.Module, device: torch.device, images: int, pixels: int) -> None:
        self.model, self.free = model, free_bytes(device)
        self.known = self.free is None
        most = min(PASS_IMAGES, PASS_PIXELS // pixels)
        self.classes = max(1, most // images) if self.known else 1

    def split(self, count: int) -> Iterator[slice]:
        """``count`` classes in turn, as many at a time as fit; asked again before each pass."""
        start = 0
        while start < count:
            here = slice(start, min(start + self.classes, count))
            yield here
            start = here.stop

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a pass forward: the first, of one class, sets how many classes the next may have."""
        if self.known or self.free is None:
            yield
            return
        with kept_bytes(self.model) as kept:
            yield
        self.classes = max(1, int(min(PASS_BYTES, FREE_SHARE * self.free) / max(1, kept[0])))
        self.known = True


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Bytes that autograd keeps of what is computed in the block, as the one item of a list; the model's own left out.

    Copies of weights in another precision count: they are few beside the maps of a batch.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = [0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:  # once, also where two operations keep the same maps
            seen.add(storage.data_ptr())
            kept[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept
