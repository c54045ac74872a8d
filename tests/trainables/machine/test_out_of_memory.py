"""A full card is known by all the words for it, and nothing else is taken for one."""

from __future__ import annotations

import pickle

import pytest
import torch

from trainables.machine.out_of_memory import is_out_of_memory

ACCELERATOR = getattr(torch, "AcceleratorError", RuntimeError)  # since torch 2.8


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9.9 GiB"),
        ACCELERATOR("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API"),
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("Triton Error [CUDA]: out of memory: CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_full_card_is_known_in_all_its_forms(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert is_out_of_memory(pickle.loads(pickle.dumps(error)))  # as it comes from another process


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError("of the host"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        ACCELERATOR("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("CUDA out of memory"),
    ],
)
def test_nothing_else_is_taken_for_a_full_card(error: Exception | None) -> None:
    assert not is_out_of_memory(error)
