"""A trigger that is no picture, or that cannot be rebuilt, is refused in one line before its victim is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy import toy_spec
from trainables.attacks.base import ATTACKS, DataPoisoning
from trainables.attacks.triggers import Trigger, check_trigger, stamp, trigger_kind
from trainables.data.images import Dataset
from trainables.plugins.modules import PluginError
from trainables.victims.spec import check_victim

IMAGES = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Made(Trigger):
    """Gives what a test wants it to give."""

    kind = "made"

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return self.make(images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: x[:, :1],
            r"images of the shape that it got, \(4, 3, 16, 16\); it gave shape \(4, 1, 16, 16\)",
        ),
        (lambda x: x[..., :8], r"it gave shape \(4, 3, 16, 8\)"),
        (lambda x: None, "it gave NoneType"),
        (lambda x: (x * 255).to(torch.uint8), r"must give float images, as it got; it gave torch\.uint8"),
        (lambda x: x * 255, r"must give values in \[0, 1\]; it gave values from 0 to 255"),
        (lambda x: x - 0.1, r"it gave values from -0\.1 to 0\.9"),
        (lambda x: torch.where(x > 0.5, torch.nan, x), "it gave values that are not finite"),
        (lambda x: x / 0, r"must give values in \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_not_stamped(make: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        stamp(Made(make), IMAGES)
    assert str(caught.value).startswith("trigger made (Made) must give ")


def test_rounding_beyond_the_range_is_cut_off() -> None:
    wide = stamp(Made(lambda x: (x - 0.5) * (1 + 2e-6) + 0.5), IMAGES)
    assert torch.equal(wide, IMAGES)
    low, high = (stamp(Made(lambda x, by=by: x + by), IMAGES) for by in (-0.003, 0.003))
    assert int(low.min()) == 0
    assert int(high.max()) == 255


class Shift(Trigger):
    """Adds a constant."""

    def __init__(self, by: float = 0.1) -> None:
        super().__init__()
        self.by = by

    def settings(self) -> dict[str, Any]:
        return {"by": self.by}

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.by).clamp(0, 1)


class Forgets(Shift):
    def settings(self) -> dict[str, Any]:
        return {}


class Renames(Shift):
    def settings(self) -> dict[str, Any]:
        return {"amount": self.by}


class KeepsATensor(Shift):
    def settings(self) -> dict[str, Any]:
        return {"by": torch.tensor(self.by)}


class Kindless(Trigger):
    def __init__(self, by: float) -> None:
        super().__init__()

    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture
def kinds(_as_before: None) -> None:
    for cls in (Shift, Forgets, Renames, KeepsATensor):
        trigger_kind(f"test {cls.__name__}")(cls)


WRONG = [
    (Forgets, "makes other images: a field is missing"),
    (Renames, r"cannot be rebuilt from its kind, settings\(\) and state: TypeError: .*amount"),
    (KeepsATensor, "cannot be rebuilt .*: TypeError: .*not JSON serializable"),
    (Kindless, "has no kind; put @trigger_kind above its class"),
]


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(("cls", "message"), WRONG)
def test_a_trigger_that_cannot_be_rebuilt_is_refused(cls: type[Shift], message: str) -> None:
    check_trigger("mine", Shift(0.2), IMAGES)
    with pytest.raises(PluginError, match=rf"attack mine: its trigger \({cls.__name__}\),? .*{message}"):
        check_trigger("mine", cls(0.2), IMAGES)


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(("cls", "message"), WRONG)
def test_it_is_refused_before_anything_is_trained(
    cls: type[Shift], message: str, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    badnets = ATTACKS.get("badnets")
    assert issubclass(badnets, DataPoisoning)
    monkeypatch.setattr(badnets, "make_trigger", lambda self, image_size, seed: cls(0.2))
    with pytest.raises(PluginError, match=message):
        check_victim(toy_spec("badnets"), toy)
