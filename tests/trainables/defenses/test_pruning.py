"""Claims of trainables.defenses.pruning: masks, thresholds set by validation data alone."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from study.run.one_trial import run_single
from tests.toy import toy_dataset, toy_spec
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, CleanData, NoData
from trainables.defenses.pruning import (
    LOOKS,
    MaskedModel,
    Tolerance,
    between,
    mean_magnitude,
    portions,
    prune_channels,
    prune_closed,
    validation_passes,
)
from trainables.job import Cell
from trainables.models.build import MODELS, ModelError, build_model
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.storage.store import Store
from trainables.training.loop import History
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.trial import run_trial
from trainables.victims.make import obtain_victim
from trainables.victims.victim import Victim

BATCH_NORM_MODELS = [name for name in MODELS.names() if name not in ("convnext_tiny", "vit_small")]


# The large families take seconds to build.
EVERY_MODEL_IF_SLOW = [
    "preact_resnet18",
    *(pytest.param(name, marks=pytest.mark.slow) for name in BATCH_NORM_MODELS if name != "preact_resnet18"),
]


@functools.cache
def model_named(name: str) -> Classifier:
    width = 2 if name == "preact_resnet18" else None
    return build_model(name, num_classes=4, width=width, generator=torch.Generator().manual_seed(0)).eval()


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EVERY_MODEL_IF_SLOW)
def test_untouched_masks_without_noise_reproduce_the_model_exactly(name: str) -> None:
    model = model_named(name)
    masked = MaskedModel(model, batch_statistics=True).eval()
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(masked(images()), expected)
        assert torch.equal(masked(images(), torch.zeros(2, len(masked.mask))), expected)


def test_mask_scales_gamma_and_noise_moves_gamma_and_beta_as_the_formula_says() -> None:
    model = copy.deepcopy(model_named("preact_resnet18"))
    with torch.no_grad():
        for norm in batch_norms(model).values():
            norm.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2))
    masked = MaskedModel(model, batch_statistics=False).eval()
    noise = torch.rand(2, len(masked.mask), generator=torch.Generator().manual_seed(3)) - 0.5
    with torch.no_grad():
        masked.mask.uniform_(0.0, 1.0, generator=torch.Generator().manual_seed(4))
        by_hand = copy.deepcopy(model)
        offset = 0
        for norm in batch_norms(by_hand).values():
            part = slice(offset, offset := offset + norm.num_features)
            norm.weight.mul_(masked.mask[part] + noise[0, part])
            norm.bias.mul_(1.0 + noise[1, part])
        torch.testing.assert_close(masked(images(), noise), by_hand(images()))


def test_clipped_masks_lie_in_the_unit_interval() -> None:
    masked = MaskedModel(model_named("preact_resnet18"), batch_statistics=False)
    with torch.no_grad():
        masked.mask[:2] = torch.tensor([-0.5, 1.5])
    masked.clip()
    assert masked.mask[:2].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_statistics_of_the_batch_are_used_only_where_asked(batch_statistics: bool) -> None:
    model = copy.deepcopy(model_named("preact_resnet18"))
    before = copy.deepcopy(model.state_dict())
    MaskedModel(model, batch_statistics=batch_statistics).train()(images())
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert bool(changed) == batch_statistics
    assert all("running" in key or "num_batches" in key for key in changed)


@pytest.mark.parametrize("name", EVERY_MODEL_IF_SLOW)
def test_pruning_a_channel_zeroes_its_gamma_and_nothing_else(name: str) -> None:
    model = copy.deepcopy(model_named(name))
    before = copy.deepcopy(model.state_dict())
    norms = batch_norms(model)
    chosen = torch.zeros(sum(norm.num_features for norm in norms.values()), dtype=torch.bool)
    first = next(iter(norms.values())).num_features
    chosen[[1, first]] = True  # a channel of the first layer, and the first one of the second
    prune_channels(model, chosen)
    (one, norm_one), (two, norm_two) = list(norms.items())[:2]
    assert float(norm_one.weight.detach()[1]) == 0.0
    assert float(norm_two.weight.detach()[0]) == 0.0
    for key, tensor in model.state_dict().items():
        expected = before[key].clone()
        if key == f"{one}.weight":
            expected[1] = 0.0
        if key == f"{two}.weight":
            expected[0] = 0.0
        assert torch.equal(tensor, expected), key


@pytest.mark.parametrize(
    ("unit", "acc_tol", "accuracy", "allowed"),
    [
        ("points", 0.1, 0.7, True),  # 0.8 - 0.7 > 0.1 in floating point
        ("points", 0.1, 0.69, False),
        ("relative", 0.1, 0.72, True),
        ("relative", 0.1, 0.71, False),
        ("points", 0.0, 0.8, True),
        ("points", 0.0, 0.79, False),
        ("relative", 0.0, 0.9, True),
    ],
)
def test_tolerance_is_a_drop_in_points_or_relative_to_the_start(
    unit: str, acc_tol: float, accuracy: float, allowed: bool
) -> None:
    assert Tolerance(acc_tol, unit, 1000).allows(accuracy, before=0.8) is allowed  # type: ignore[arg-type]


@pytest.mark.parametrize("acc_tol", [0.001, 0.009])
def test_a_tolerance_of_less_than_one_image_is_one_image_and_none_is_none(acc_tol: float) -> None:
    # Of 50 images every drop is a multiple of 0.02: below that a tolerance would do nothing, whatever its value.
    assert Tolerance(acc_tol, "points", 50).largest_drop(0.8) == pytest.approx(0.02)
    assert Tolerance(acc_tol, "points", 50).allows(0.78, before=0.8)
    assert not Tolerance(acc_tol, "points", 50).allows(0.76, before=0.8)
    assert not Tolerance(0.0, "points", 50).allows(0.78, before=0.8)
    assert Tolerance(0.1, "relative", 50).largest_drop(0.8) == pytest.approx(0.08)


def test_portions_hold_few_channels_one_by_one_and_always_as_many_looks() -> None:
    assert [len(portions(count)) for count in (0, 1, 12, 424)] == [LOOKS] * 4
    assert portions(424)[:5] == [5, 17, 39, 68, 106]
    assert between(5, 17) == [7, 8, 9, 10, 11, 13, 14, 15, 16, 17]
    assert (portions(0)[-1], portions(1), portions(424)[-1]) == (0, [1] * LOOKS, 424)
    assert (between(3, 3), between(0, 1)) == ([3] * LOOKS, [1] * LOOKS)


def closing(*steps: list[float]) -> MaskedModel:
    """Masks of which the first few take these values after each step, before they are clipped; the others stay at 1."""
    masked = MaskedModel(copy.deepcopy(model_named("preact_resnet18")), batch_statistics=False)
    for step, values in enumerate(steps):
        with torch.no_grad():
            masked.mask[: len(values)] = torch.tensor(values)
        masked.clip(step)
    return masked


def test_channels_go_in_the_order_in_which_their_masks_first_closed() -> None:
    # 0 closes last; 1 closes first and 2 with it, less far; 3 never closes; 4 opens again; 5 is barely touched.
    masked = closing([0.5, -3.0, -0.1, 0.6, -0.2, 0.95], [-0.1, 0.0, -0.5, 0.3, 0.9, 0.95])
    assert masked.mask[:6].tolist() == pytest.approx([0.0, 0.0, 0.0, 0.3, 0.9, 0.95])
    assert masked.closing_order(0.5).tolist() == [1, 2, 0, 3], "by their masks the first three are one lump"
    assert masked.closing_order(0.0).tolist() == [1, 2, 0]
    assert masked.closing_order(0.9).tolist() == [1, 4, 2, 0, 3]


class AccuracyByPruned(Trainer):
    """A bench whose accuracy is a table over the number of pruned channels; it notes how often it was asked."""

    table: dict[int, float]
    asked: list[int]

    def accuracy(self, model: Classifier, data: ImageSet) -> float:
        pruned = sum(int((norm.weight == 0).sum()) for norm in batch_norms(model).values())
        self.asked.append(pruned)
        return self.table[pruned]


def sweep(
    trainer: Trainer, table: list[float], *, threshold: float = 0.9, acc_tol: float | None = 0.1
) -> tuple[Classifier, dict, str, list[int]]:
    """Prune a model whose first masks all closed to 0, one after the other; ``table``: accuracy with 0, 1, ... pruned.

    A fifth mask stands at 0.5.
    """
    bench = AccuracyByPruned(**vars(trainer))
    bench.table, bench.asked = dict(enumerate(table)), []
    masked = closing([-0.4, -0.3, -0.2, -0.1, 0.5])
    empty = ImageSet(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64))
    repair = prune_closed(
        copy.deepcopy(model_named("preact_resnet18")),
        masked,
        empty,
        bench,
        threshold=threshold,
        acc_tol=acc_tol,
        unit="points",
        history=History(),
        notes={},
    )
    return repair.model, repair.notes, repair.status, bench.asked


def zeros(model: Classifier) -> int:
    return sum(int((norm.weight == 0).sum()) for norm in batch_norms(model).values())


def test_largest_admissible_number_wins_even_behind_an_inadmissible_one(trainer: Trainer) -> None:
    model, notes, status, asked = sweep(trainer, [0.9, 0.9, 0.5, 0.85, 0.2, 0.2])
    assert notes["pruned"] == zeros(model) == 3
    assert (notes["validation_before"], notes["validation_after"]) == (0.9, 0.85)
    assert status == "ok"
    assert len(asked) == validation_passes(0.1)


def test_masks_clipped_to_the_same_value_are_not_pruned_as_one_lump(trainer: Trainer) -> None:
    # By a threshold on their values all four would go, which costs too much, and the repair would abstain.
    model, notes, status, _ = sweep(trainer, [0.9, 0.85, 0.1, 0.1, 0.1, 0.1])
    assert (zeros(model), notes["closed"], status) == (1, 5, "ok")
    assert notes["validation_after"] == 0.85
    first = next(iter(batch_norms(model).values()))
    assert float(first.weight.detach()[0]) == 0.0, "the mask that was pushed furthest closed first"


def test_what_is_not_closed_stays_though_the_tolerance_would_admit_more(trainer: Trainer) -> None:
    model, notes, _, asked = sweep(trainer, [0.9] * 6, threshold=0.2)
    assert (zeros(model), notes["closed"], max(asked)) == (4, 4, 4)


def test_nothing_admissible_returns_the_model_as_it_came(trainer: Trainer) -> None:
    model, notes, status, _ = sweep(trainer, [0.9, 0.1, 0.1, 0.1, 0.1, 0.1])
    original = model_named("preact_resnet18").state_dict()
    assert all(torch.equal(tensor, original[key]) for key, tensor in model.state_dict().items())
    assert status == "abstained"
    assert notes["pruned"] == 0


def test_without_a_tolerance_all_that_closed_goes_and_no_validation_data_is_asked(trainer: Trainer) -> None:
    model, notes, _, asked = sweep(trainer, [], threshold=0.2, acc_tol=None)
    assert (zeros(model), notes["pruned"], asked) == (4, 4, [])
    assert validation_passes(None) == 0


def test_magnitude_is_not_the_signed_mean_and_does_not_depend_on_the_order() -> None:
    signed = torch.tensor([[-3.0, 0.5], [-3.0, 0.5], [-3.0, -0.5]])
    assert mean_magnitude([signed]).tolist() == [3.0, 0.5]
    maps = torch.rand(64, 5, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    one, other = mean_magnitude(list(maps.split(16))), mean_magnitude(list(maps[order].split(24)))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    assert one.argsort().tolist() == other.argsort().tolist()


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_small"])
@pytest.mark.parametrize("defense", ["anp", "rnp", "clp", "nft"])
def test_model_without_batch_norm_is_refused_in_one_line(
    defense: str, name: str, toy: Dataset, trainer: Trainer
) -> None:
    model = model_named(name)
    with pytest.raises(ModelError, match=rf"^defense {defense} .*BatchNorm.*has none.*$") as caught:
        DEFENSES.create(defense).check(model, 100, 20)
    assert "\n" not in str(caught.value)
    data = toy.train.subset(torch.arange(20))
    assets = NoData() if defense == "clp" else CleanData(data, data)
    with pytest.raises(ModelError, match="BatchNorm"):
        DEFENSES.create(defense).repair(model, assets, trainer)


@pytest.mark.parametrize("defense", ["fp", "anp", "rnp"])
def test_clean_set_without_validation_images_is_refused_in_one_line(
    defense: str, toy: Dataset, trainer: Trainer, toy_victim: Victim
) -> None:
    assets = CleanData(toy.train.subset(torch.arange(10)), toy.train.subset(torch.arange(0)))
    with pytest.raises(DataError, match=rf"^defense {defense} .*validation.*larger clean_fraction$"):
        DEFENSES.create(defense).repair(copy.deepcopy(toy_victim.model), assets, trainer)


@pytest.mark.parametrize(
    "name", [*EVERY_MODEL_IF_SLOW, "vit_small", pytest.param("convnext_tiny", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("layer", ["classifier_in", "last_conv"])
def test_fine_pruning_silences_units_of_every_registered_model(name: str, layer: str, trainer: Trainer) -> None:
    model = copy.deepcopy(model_named(name))
    data = ImageSet((images(8) * 255).to(torch.uint8), torch.arange(8) % 4)
    defense = DEFENSES.create("fp", {"layer": layer, "acc_tol": 0.99, "steps": 0, "prune_steps": 2})
    repair = defense.repair(model, CleanData(data, data), trainer)
    assert repair.notes["pruned"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCH_NORM_MODELS)
@pytest.mark.parametrize(
    ("defense", "settings"),
    [
        ("anp", {"iterations": 2, "lr": 5.0, "threshold": 0.5, "acc_tol": None}),
        ("rnp", {"unlearn_steps": 2, "recover_steps": 2, "recover_lr": 20.0, "threshold": 0.5, "acc_tol": None}),
        ("clp", {"u": 1.0}),
    ],
)
def test_channels_of_every_registered_model_can_be_pruned(
    name: str, defense: str, settings: dict[str, object], trainer: Trainer
) -> None:
    model = copy.deepcopy(model_named(name))
    data = ImageSet((images(8) * 255).to(torch.uint8), torch.arange(8) % 4)
    assets = NoData() if defense == "clp" else CleanData(data, data)
    repair = DEFENSES.create(defense, settings).repair(model, assets, trainer)
    assert repair.notes["pruned"] > 0
    assert zeros(repair.model) >= repair.notes["pruned"]
    assert bool(repair.model(images()).isfinite().all())


@pytest.mark.parametrize(
    ("defense", "settings", "message"),
    [
        ("anp", ["model=convnext_tiny", "width=null"], "BatchNorm"),
        ("rnp", ["model=convnext_tiny", "width=null"], "BatchNorm"),
        ("clp", ["model=convnext_tiny", "width=null"], "BatchNorm"),
        ("fp", ["clean_fraction=0.008"], "validation"),
        ("anp", ["clean_fraction=0.008"], "validation"),
        ("rnp", ["clean_fraction=0.008"], "validation"),
    ],
)
def test_what_cannot_work_is_refused_before_any_victim_is_trained(
    defense: str, settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ModelError, DataError), match=f"^defense {defense} .*{message}"):
        run_single(attack="badnets", defense=defense, dataset="digits", assignments=settings, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruning_a_working_backdoor(seed: int, toy_store: Store) -> None:
    """What holds on a net of width 4, seen on these seeds; nothing is promised of how much a backdoor fades.

    ANP weakens it. FP and CLP leave it about where it was (few channels, each of many uses; at u = 3 no layer of fewer
    than 11 channels can lose one). RNP at published rates drives too many masks to 0 and abstains. None costs more
    accuracy than its tolerance by much.
    """
    data = toy_dataset(train=600, test=200, seed=seed)
    recipe = TrainingRecipe(epochs=20, batch_size=32, lr=0.05, schedule="one_cycle")
    spec = toy_spec("badnets", seed=seed, width=4, recipe=recipe, poison_rate=0.15)
    victim = obtain_victim(spec, data, toy_store, torch.device("cpu"))
    before = victim.evaluation.full
    assert before.asr > 0.9
    trials = {
        "anp": {"lr": 0.05, "iterations": 200, "batch_size": 64, "acc_tol": 0.15},
        "fp": {"steps": 90, "batch_size": 64},
        "rnp": {"batch_size": 64},
        "clp": {},
    }
    for defense, settings in trials.items():
        cell = Cell(DataSource("toy"), spec, defense, 1.0)
        result = run_trial(cell, settings, dataset=data, victim=victim, device=torch.device("cpu"))
        asr, accuracy = result.metrics["asr"], result.metrics["clean_accuracy"]
        assert asr is not None
        assert accuracy is not None
        assert asr <= before.asr + 0.02
        assert accuracy >= before.clean_accuracy - 0.25
        if defense == "anp":
            assert asr < before.asr
        if result.status == "abstained":
            assert (asr, accuracy) == (before.asr, before.clean_accuracy)
