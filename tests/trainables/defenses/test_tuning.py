"""What nad, ft_sam, fst and ibau are documented to do, on real digits: forget the trigger where `ft` does not."""

from typing import Any

import pytest
import torch

from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.storage.store import Store
from trainables.training.recipes import RECIPES
from trainables.trial_result import TrialResult
from trainables.victims.spec import VictimSpec
from trainables.workbench import Workbench

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(Store(tmp_path_factory.mktemp("digits")), torch.device("cpu"))


def repaired(bench: Workbench, defense: str, seed: int, settings: dict[str, Any]) -> TrialResult:
    victim = VictimSpec(attack="badnets", model="preact_resnet18", recipe=RECIPES["quick"], width=8, seed=seed)
    return bench.run(Cell(DataSource("digits"), victim, defense), settings)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        ("nad", {}),
        ("ft_sam", {}),
        ("fst", {"lr": 0.05}),
        ("ibau", {"patch_portion": 0.5}),
    ],
)
def test_trigger_is_forgotten_at_a_bounded_price(
    bench: Workbench, defense: str, settings: dict[str, Any], seed: int
) -> None:
    found = repaired(bench, defense, seed, settings).metrics
    assert found["asr_before"] is not None
    assert found["asr_before"] > 0.9
    assert found["asr"] is not None
    assert found["asr"] < 0.5 * found["asr_before"]
    assert found["clean_accuracy"] is not None
    assert found["clean_accuracy"] > 0.7  # ibau pays most: 0.79 and 0.84 on seeds 2 and 0


@pytest.mark.parametrize("seed", SEEDS)
def test_fine_tuning_as_long_at_the_same_rate_does_not_forget_it(bench: Workbench, seed: int) -> None:
    found = repaired(bench, "ft", seed, {}).metrics
    assert found["asr"] is not None
    assert found["asr"] > 0.5
