"""Claims of trainables.machine.threads: so many threads in the block, and what was before comes back."""

import pytest
import torch

from trainables.machine.threads import on_threads


def test_a_block_has_its_threads_and_gives_them_back() -> None:
    before = torch.get_num_threads()
    with on_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        with on_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_a_block_that_raises_gives_them_back_too() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), on_threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
