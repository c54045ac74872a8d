"""Whether an error says that a GPU's memory is full: the one place that decides, for all the words that are in use."""

from __future__ import annotations

import torch

# Beside torch's own allocator, which has an exception of its own, the libraries that torch calls take memory for
# handles, workspaces and kernels, and say each in its own words that there is none.
WORDS = (
    "CUDA out of memory",
    "HIP out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "HIP error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    # cuBLAS, cuDNN, cuSPARSE and cuSOLVER; then cuDNN since version 9, cuRAND; cuFFT.
    "_STATUS_ALLOC_FAILED",
    "_DEVICE_ALLOCATION_FAILED",
    "_STATUS_ALLOCATION_FAILED",
    "CUFFT_ALLOC_FAILED",
    # cuDNN tries its kernels one after the other; each found no room for its workspace. That none suits the operation
    # would be told in the same words: then the trial fails with them on the larger share too.
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a larger share of the card may help.

    A full memory of the *host* (`MemoryError`, a CPU allocator's message) is something else: no share helps there.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # `torch.AcceleratorError` is a RuntimeError too, where torch has it.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
