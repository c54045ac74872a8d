"""Pieces of work done side by side, on Ray's workers or one after the other in this process."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

OURS = ("superft", "study", "search_spaces", "trainables")


class Workers(Protocol):
    """Does pieces of work; a handle stands for one of them."""

    def share(self, thing: Any) -> Any:
        """``thing`` for all pieces that are given it, sent once."""

    def start(self, piece: Callable[..., Any], *given: Any) -> Any:
        """Begin ``piece(*given, device)``; its handle."""

    def first(self, handles: Sequence[Any]) -> Any:
        """The handle of one that has ended."""

    def result(self, handle: Any) -> Any:
        """What it gave back; raises what it raised."""


class InThisProcess:
    """One piece after the other.

    Args:
        device: where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def share(self, thing: Any) -> Any:
        return thing

    def start(self, piece: Callable[..., Any], *given: Any) -> Any:
        return partial(piece, *given, self.device)

    def first(self, handles: Sequence[Any]) -> Any:
        return handles[0]

    def result(self, handle: Any) -> Any:
        return handle()


class OnRay:
    """As many pieces at a time as the running Ray has room for: a CPU core each, or a whole GPU each.

    Args:
        gpus: of each piece.
        retries: after a worker or its node was lost.
    """

    def __init__(self, gpus: int, retries: int) -> None:
        import ray

        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=retries)(_on_given_device)

    def share(self, thing: Any) -> Any:
        import ray

        with by_value():
            return ray.put(thing)

    def start(self, piece: Callable[..., Any], *given: Any) -> Any:
        return self._task.remote(piece, *given)

    def first(self, handles: Sequence[Any]) -> Any:
        import ray

        return ray.wait(list(handles), num_returns=1)[0][0]

    def result(self, handle: Any) -> Any:
        import ray

        return ray.get(handle)


def _on_given_device(piece: Callable[..., Any], *given: Any) -> Any:
    """Ray task: the piece on the GPU that Ray gave, else on the CPU."""
    import ray

    from trainables.machine.device import given_device

    return piece(*given, given_device(ray.get_gpu_ids()))


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """Within the block, classes of modules that are not installed are pickled whole: workers need no such file.

    A user's own network lies in a file or a notebook of his, which other processes may not find.
    """
    from ray import cloudpickle

    added = [module for module in list(sys.modules.values()) if _is_own(module)]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _is_own(module: ModuleType) -> bool:
    """Whether it lies where the user works: not in Python's folders, and not in a package of ours."""
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if not isinstance(file, str) or name == "__main__" or name.partition(".")[0] in OURS:
        return False
    if sys.modules.get(name) is not module:
        return False
    installed = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(place) for place in installed)
