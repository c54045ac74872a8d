"""How many processor threads PyTorch computes on: sums are formed in parts, so their number decides the last bits.

Measured (torch 2.14, oneDNN, ResNet of width 8, digits): of one training step the weight gradients of convolutions and
batch normalisation in the channels-last layout differ between 1 and 2 threads, by 1e-6 of their size; so do products
of matrices whose inner side is long, and LAPACK's factorisations. Training carries that on to whole images. There is no
switch for it: oneDNN's deterministic mode gives other numbers on 1 and 2 threads too, and without oneDNN a step takes
2.5 times as long on one thread and batch normalisation still differs. So a trial has as many threads as it is told,
one by default, whatever the machine has. Threads between operations (`torch.set_num_interop_threads`, which a process
may set only once) take no part: nothing here runs operations side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within the block PyTorch computes on ``count`` threads, >= 1; afterwards on as many as before.

    It may be more than there are cores: that is slow, and gives what as many threads give elsewhere.
    """
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
