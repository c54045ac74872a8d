"""Capture and replay without a card: operations are recorded, undone, and done again on the same tensors.

As strict as a card's: what is captured may ask for no value; Python that runs during the capture runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ASKING = {"aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.masked_select", "aten.equal"}


class Recorder(TorchDispatchMode):
    """Every operation within, in its order, with the tensors it met; and what those held that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self._known: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(function).rpartition(".")[0] in ASKING:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in tensors((args, kwargs)):
            if id(tensor) not in self._known:
                self.before.append((tensor, tensor.detach().clone()))
                self._known[id(tensor)] = tensor
        made = function(*args, **kwargs)
        # Kept alive, so that no other tensor gets the number of one of them.
        self._known |= {id(tensor): tensor for tensor in tensors(made)}
        self.operations.append((function, args, kwargs, made))
        return made

    @torch.no_grad()
    def undo(self) -> None:
        """What was there before holds again what it held; a capture computes nothing."""
        for tensor, old in self.before:
            tensor.detach().copy_(old)

    @torch.no_grad()
    def replay(self) -> None:
        """All again, into the tensors that were made when it was recorded."""
        for function, args, kwargs, made in self.operations:
            if function.is_view:
                continue
            again = function(*args, **kwargs)
            for static, new in zip(tensors(made), tensors(again), strict=True):
                if static is not new:
                    static.detach().copy_(new)


def tensors(things: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(things) if isinstance(leaf, Tensor)]


class RecordedGraphs:
    """Stands in for `captured_step.CudaGraphs` on any device.

    Args:
        error: raised by every capture, in its middle.
    """

    def __init__(self, error: RuntimeError | None = None) -> None:
        self.error = error
        self.warmed_up = self.captures = self.replays = 0

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed_up += 1
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.captures += 1
        recorder = Recorder()
        try:
            with recorder:
                found = work()
            if self.error is not None:
                raise self.error
        finally:
            recorder.undo()

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return found, replay
