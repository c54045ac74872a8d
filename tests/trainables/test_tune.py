"""What another try may end otherwise is raised to Tune; what a method raised by itself is reported at once."""

from __future__ import annotations

import pytest
import ray
import torch

from trainables.data.images import DataError
from trainables.tune import may_pass


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
