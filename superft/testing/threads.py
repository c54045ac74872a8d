"""One thread of PyTorch, so that results do not depend on how many cores a machine has."""

from __future__ import annotations

from contextlib import AbstractContextManager

from trainables.machine.threads import on_threads


def one_thread() -> AbstractContextManager[None]:
    """Within the block PyTorch computes on one thread; afterwards on as many as before."""
    return on_threads(1)
