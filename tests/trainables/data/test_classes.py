"""Claims of data.classes, and of what draws by class: the work does not grow with the number of classes."""

import pytest
import torch

from trainables.data.classes import class_members
from trainables.data.split import split_clean
from trainables.evaluation.aftermath.membership import draw_pairs


def test_members_are_those_of_a_look_per_class_in_their_order() -> None:
    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(0)) * 2
    found = class_members(labels, 15)
    assert len(found) == 15
    for label, places in enumerate(found):
        assert torch.equal(places, (labels == label).nonzero()[:, 0])
    assert len(class_members(labels)) == 13
    assert len(class_members(labels, 3)) == 3


def test_no_samples_have_no_members() -> None:
    assert class_members(torch.zeros(0, dtype=torch.int64)) == ()
    assert [len(part) for part in class_members(torch.zeros(0, dtype=torch.int64), 2)] == [0, 0]


class Counting(torch.overrides.TorchFunctionMode):
    """Counts the elements of all tensors that come out of operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.elements += found.numel()
        return found


@pytest.mark.parametrize("draw", ["split", "pairs"])
def test_a_hundred_times_the_classes_is_not_a_hundred_times_the_work(draw: str) -> None:
    work = {}
    for classes in (10, 1000):
        labels = torch.arange(20_000) % classes
        with Counting() as counting:
            if draw == "split":
                split_clean(labels, 0.1, num_classes=classes, seed=0)
            else:
                draw_pairs(labels, labels, 2000, classes, torch.Generator().manual_seed(0))
        work[classes] = counting.elements
    # A look at all labels per class would make it 50 times as much.
    assert work[1000] < 3 * work[10]
