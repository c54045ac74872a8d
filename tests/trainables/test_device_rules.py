"""What a card would refuse, and what would make its steps wait, is seen on a CPU: all methods on a pretend device."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from torch.utils import backend_registration

from tests.pretend.variants import VARIANTS
from tests.test_architecture import ROOT
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices written in Python",
)
METHODS = [
    *(f"attack {name}" for name in (*ATTACKS.names(), *VARIANTS)),
    *(f"defense {name}" for name in DEFENSES.names()),
]
# Once in `CHECK_EVERY` steps and at the end the loop asks whether all is finite.
CHECKS = {"training/loop.py:_collect", "training/loop.py:_check_finite"}
# Where steps are known to wait. A line is deleted when that is mended; a new one needs a reason.
KNOWN = {
    "defenses/rnp.py:reached": "the ascent ends at a loss, looked at once per epoch",
}


@pytest.fixture(scope="module")
def met() -> dict[str, Any]:
    """By what was driven: the error, the steps made, and what waited in them."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.pretend.drive"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def places(driven: dict[str, Any]) -> set[str]:
    return {place for _, place, _ in driven["waits"]}


@pytest.mark.parametrize("driven", ["fit train", "fit plain", "fit replayed", "fit refused", "fit head", *METHODS])
def test_everything_stays_on_its_device(met: dict[str, Any], driven: str) -> None:
    assert met[driven]["error"] is None


@pytest.mark.parametrize("method", METHODS)
def test_no_further_step_waits_for_the_cpu(met: dict[str, Any], method: str) -> None:
    assert places(met[method]) - CHECKS <= KNOWN.keys()


def test_a_training_step_waits_for_nothing(met: dict[str, Any]) -> None:
    """With augmentation, a transform, a perturbation and clipping; asked for finite numbers once per training."""
    assert met["fit train"]["steps"] == 24
    assert sorted(place for _, place, times in met["fit train"]["waits"] if times == 2) == sorted(CHECKS)
    assert places(met["fit train"]) == CHECKS


@pytest.mark.parametrize("way", ["plain", "replayed"])
def test_a_plain_step_sends_three_small_copies_and_asks_once_in_fifty(met: dict[str, Any], way: str) -> None:
    """Which images, where they are cropped, which are mirrored; the losses of 50 steps, and the weights at the end."""
    driven = met[f"fit {way}"]
    assert driven["steps"] == 100
    assert driven["sent"] == 3 * 100
    assert sorted(driven["waits"]) == [
        ["a value is asked for", "training/loop.py:_check_finite", 1],
        ["a value is asked for", "training/loop.py:_collect", 2],
    ]


def test_the_masks_of_an_encoders_head_are_not_waited_for(met: dict[str, Any]) -> None:
    assert places(met["fit head"]) == CHECKS
    assert met["fit head"]["sent"] == 2 * met["fit head"]["steps"]


def test_a_tensor_made_on_the_cpu_in_a_step_would_be_seen(met: dict[str, Any]) -> None:
    assert "a tensor of the CPU, (8,), beside one of the device, in training/loop.py" in met["fit spoiled"]["error"]


def test_a_copy_that_blocks_and_a_value_that_is_asked_for_would_be_seen(met: dict[str, Any]) -> None:
    steps = [wait for wait in met["fit waiting"]["waits"] if wait[1] == "training/loop.py:differentiate"]
    assert steps == [
        ["a copy to the device is waited for", "training/loop.py:differentiate", 3],
        ["a value is asked for", "training/loop.py:differentiate", 3],
    ]
