"""Whether a tensor lies in memory, or in a file that is mapped."""

from pathlib import Path

import pytest
from torch import Tensor

MAPS = Path("/proc/self/maps")
needs_list_of_maps = pytest.mark.skipif(not MAPS.exists(), reason="no list of what is mapped")


def lies_in(file: Path, tensor: Tensor) -> bool:
    """Whether the tensor's memory is a map of ``file``."""
    own = [line.split()[0].split("-") for line in MAPS.read_text().splitlines() if line.endswith(str(file))]
    return any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in own)
