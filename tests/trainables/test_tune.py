"""What another try may end otherwise is raised to Tune, what a method raised is reported at once; time limits cut."""

from __future__ import annotations

import signal
import threading

import pytest
import ray
import torch

from trainables.data.images import DataError
from trainables.tune import TimeLimitError, may_pass, time_limit


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ray.exceptions.RaySystemError("lost"),
    ],
)
def test_memory_disk_ray_and_a_broken_gpu_are_tried_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), DataError("x"), ValueError("x")]
)
def test_a_bug_is_not(error: Exception) -> None:
    assert not may_pass(error)


@pytest.mark.parametrize("seconds", [0.05, 1e-6])
def test_a_block_is_cut_once_its_time_is_over_and_nothing_is_left_that_ends_the_process(seconds: float) -> None:
    """Also where the time is over before the block begins."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeLimitError, match=rf"^cut after {seconds:g} s \("), time_limit(seconds):
        threading.Event().wait(60)
    assert signal.getsignal(signal.SIGALRM) is before
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(20)
        assert not timer.is_alive()


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(3600):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
