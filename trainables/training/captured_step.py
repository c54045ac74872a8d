"""A training step that is captured once as a CUDA graph and then replayed: one launch in place of some hundreds.

Captured is what turns a batch into moved weights: loss, backward pass, perturbation, clipping, update. Everything else
of a training (batches, augmentation, transforms, hooks) stays as it is and stays between the replays.

A replay repeats the operations of the device and nothing that Python does. So a loss or a perturbation says by
`replayable` that this is enough, and what is asked of it here is looked at once more before the capture: a step that
computes something on the CPU, or draws random numbers, would repeat the outcome of one step for ever.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.machine.out_of_memory import is_out_of_memory

log = logging.getLogger("superft.training")

# Made as they come, so that the optimiser's state and the libraries' workspaces are there before the capture.
WARM_UP_STEPS = 3
# A training of fewer steps would hardly earn back what the capture costs.
FEWEST_STEPS = 20

Update = Callable[[Tensor, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])


def replayable(function: F, *, counts: bool = False) -> F:
    """Marks a loss or a perturbation all of whose effect is operations on tensors of the device, the same each step.

    It draws nothing, asks for no value, keeps nothing for later and depends on nothing that changes from step to step
    but the tensors that are given to it, the weights and tensors that are changed in place.

    Args:
        counts: it also adds to the `Counters` of the training, the same in each step; a replay adds that again.
    """
    function.replayable = True  # type: ignore[attr-defined]
    function.counts = counts  # type: ignore[attr-defined]
    return function


def is_replayable(function: Callable[..., Any] | None) -> bool:
    """Whether `replayable` was said of it; of a partial or a bound method: of the function behind it. None is."""
    return function is None or bool(getattr(_behind(function), "replayable", False))


def is_pure(function: Callable[..., Any]) -> bool:
    """Whether it is replayable and does not count either."""
    return is_replayable(function) and not getattr(_behind(function), "counts", False)


def _behind(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    return function


class Graphs(Protocol):
    """What captures and replays on one device."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """``work`` made now, as it will be captured."""

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """``work`` recorded without being done, as the tensor it gives and what does it, again and again.

        Raises:
            RuntimeError: it cannot be recorded, or there is no memory left.
        """


class CudaGraphs:
    """CUDA's own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.side = device, torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        # On the stream of the capture: libraries keep handles and workspaces per stream.
        main = torch.cuda.current_stream(self.device)
        self.side.wait_stream(main)
        with torch.cuda.stream(self.side):
            found = work()
        main.wait_stream(self.side)
        return found

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # The outer stream: torch stays on the capture's own where that fails. thread_local: what other threads ask of
        # the card meanwhile (a meter of its memory) is no part of the step.
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, stream=self.side, capture_error_mode="thread_local"),
        ):
            found = work()
        return found, graph.replay


def graphs_on(device: torch.device) -> Graphs | None:
    """What captures on ``device``; None where nothing can (a CPU)."""
    return CudaGraphs(device) if device.type == "cuda" else None


class CapturedStep:
    """``update``, made as it comes for the first steps, then captured, then replayed.

    A batch of another shape than the captured one, and all steps from a hook on that gives a weight other memory, are
    made as they come. So is everything where the capture fails; a line of the log says why.

    Args:
        update: (inputs, labels) -> the step's loss, detached; does the whole step with them.
        model: whose parameters and buffers ``update`` moves.
        counters: the `Counters` (any dataclass of numbers) that ``update`` adds to.
        graphs: of the device.
    """

    def __init__(self, update: Update, model: nn.Module, counters: Any, graphs: Graphs) -> None:
        self.update, self.model, self.counters, self.graphs = update, model, counters, graphs
        self.steps = 0
        self.replay: Callable[[], None] | None = None
        self.given_up = False
        self.work: dict[str, int] = {}

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The step's loss, a tensor of its own."""
        self.steps += 1
        if self.given_up:
            return self.update(inputs, labels)
        if self.steps <= WARM_UP_STEPS:
            last = self.steps == WARM_UP_STEPS
            return self.graphs.warm_up(lambda: (self._watched if last else self.update)(inputs, labels))
        if self.replay is None and not self._captured(inputs, labels):
            return self.update(inputs, labels)
        return self._replayed(inputs, labels)

    def _watched(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with OffDevice(inputs.device) as watch:
            found = self.update(inputs, labels)
        if watch.seen is not None:
            log.info("the training step is not captured: it computes %s off the device or at random", watch.seen)
            self.given_up = True
        return found

    def _captured(self, inputs: Tensor, labels: Tensor) -> bool:
        """Whether the step is captured now; the weights and the counters are as before either way."""
        before = dataclasses.asdict(self.counters)
        # Kept in the form they have: their layout decides which kernels are captured.
        self.inputs, self.labels = inputs.clone(), labels.clone()
        for parameter in self.model.parameters():
            parameter.grad = None  # so that the gradients get memory of the graph's own
        try:
            self.loss, self.replay = self.graphs.capture(lambda: self.update(self.inputs, self.labels))
        except RuntimeError as error:
            self._give_up(error)
            return False
        finally:
            after = dataclasses.asdict(self.counters)
            self.work = {name: after[name] - before[name] for name in after}
            for name, value in before.items():
                setattr(self.counters, name, value)
        self.gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        self.addresses = self._addresses()
        return True

    def _replayed(self, inputs: Tensor, labels: Tensor) -> Tensor:
        assert self.replay is not None
        given = ((inputs, self.inputs), (labels, self.labels))
        if any(new.shape != static.shape or new.dtype != static.dtype for new, static in given):
            return self.update(inputs, labels)
        if self._addresses() != self.addresses:
            log.info("the training step is not replayed any more: a hook has put a weight into other memory")
            self.given_up, self.replay = True, None
            return self.update(inputs, labels)
        for new, static in given:
            static.copy_(new)
        self.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient  # a step of another shape has left its own
        for name, value in self.work.items():
            setattr(self.counters, name, getattr(self.counters, name) + value)
        return self.loss.clone()

    def _addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]

    def _give_up(self, error: RuntimeError) -> None:
        self.given_up = True
        # What ends the capture may fail again on its way out, and hide the first error.
        cause: BaseException | None = error
        while cause is not None and not is_out_of_memory(cause):
            cause = cause.__context__
        why = str(error).partition("\n")[0] if cause is None else "the card has no memory left for it"
        log.warning("the training step could not be captured as a CUDA graph and goes on without: %s", why)


class OffDevice(TorchDispatchMode):
    """``seen``: the first operation within, if any, that a replay on ``device`` would not do anew.

    That is one on a tensor of another device, numbers (tensors without dimensions) apart, and every random draw.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.seen: str | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if self.seen is None and (
            torch.Tag.nondeterministic_seeded in function.tags
            or any(
                tensor.dim() > 0 and tensor.device.type != self.device.type
                for tensor in _tensors((*args, *(kwargs or {}).values(), found))
            )
        ):
            self.seen = str(function)
        return found


def _tensors(things: Any) -> Iterator[Tensor]:
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, list | tuple):
            yield from _tensors(thing)
