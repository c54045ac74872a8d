"""Claims of trainables.foreign.repair: any defense that fits repairs a user's model, and the result says what it is."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from tests.trainables.foreign.nets import MEAN, STD, Headless, PlainCNN, own_images, tiny_vit
from trainables.data.images import DataError, ImageSet
from trainables.defenses.base import DEFENSES, CleanData, NoData, PoisonedData
from trainables.foreign import repair
from trainables.foreign.findings import moved
from trainables.foreign.images import CleanImages, split
from trainables.foreign.repair import Repaired, repair_model
from trainables.models.build import ModelError
from trainables.training.loop import History
from trainables.training.movement import Movement, loss_rise
from trainables.training.predict import predict

CPU = torch.device("cpu")
# A few steps of each: enough to move every kind of weight.
SHORT: dict[str, dict[str, Any]] = {
    "super_ft": {"iterations": 3},
    "ft": {"steps": 4},
    "ft_sam": {"steps": 2},
    "fst": {"steps": 2},
    "fp": {"steps": 2, "prune_steps": 5},
    "nad": {"steps": 2, "teacher_steps": 2},
    "nc": {"steps": 2, "mask_steps": 8, "mad_threshold": 0.0},
    "anp": {"iterations": 3},
    "rnp": {"unlearn_steps": 3, "recover_steps": 3},
    "awm": {"steps": 2, "round_steps": 2, "inner_steps": 2},
    "ibau": {"steps": 2, "round_steps": 2, "inner_steps": 2},
    "sau": {"steps": 2},
    "clp": {"u": 1.0},
    "scratch": {"iterations": 3},
    "d3": {"steps": 2},
    "pam": {"steps": 2},
    "nft": {"iterations": 3},
    "none": {},
}
BY_OWNING = {kind: [n for n, cls in DEFENSES.items() if cls.owns is kind] for kind in (NoData, CleanData, PoisonedData)}


def _repair(model: torch.nn.Module, name: str = "super_ft", **given: Any) -> Repaired:
    defense = DEFENSES.create(name, given.pop("settings", SHORT.get(name, {})))
    clean = given.pop("clean", own_images())
    return repair_model(model, clean, defense, **{"mean": MEAN, "std": STD, "device": CPU, **given})


def test_every_defense_of_ours_is_tried() -> None:
    ours = {n for n in (*BY_OWNING[NoData], *BY_OWNING[CleanData]) if DEFENSES.module_of(n).startswith("trainables.")}
    assert set(SHORT) == ours


@pytest.mark.parametrize("name", SHORT)
def test_every_defense_repairs_a_plain_cnn_and_plain_torch_loads_it(name: str, own_model: PlainCNN) -> None:
    build = (lambda generator: PlainCNN()) if name == "scratch" else None
    before = {key: value.clone() for key, value in own_model.state_dict().items()}
    result = _repair(own_model, name, build=build)
    loaded = PlainCNN()
    loaded.load_state_dict(result.model.state_dict())
    assert type(result.model) is PlainCNN
    assert all(torch.equal(before[key], value) for key, value in own_model.state_dict().items())
    assert result.report["defense"] == name
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    went = result.report["displacement"]["distance"] > 0
    # Pruning too few validation images allow, and detectors that flag nothing, leave the model as it is.
    assert went == (result.report["status"] == "ok" and name != "none")


@pytest.mark.parametrize("name", ["super_ft", "fst", "fp", "ibau", "sau"])
def test_defenses_that_need_no_convolutions_repair_a_transformer(name: str) -> None:
    result = _repair(tiny_vit(), name, accept=True)
    assert result.report["displacement"]["distance"] > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nad", "nad needs feature maps at two sizes or more; this model has maps at one size"),
        ("anp", "anp needs batch normalisation"),
        ("rnp", "rnp needs batch normalisation"),
        ("clp", "clp needs batch normalisation"),
        ("nft", "nft needs batch normalisation"),
        ("scratch", "scratch needs a new model of this architecture"),
    ],
)
def test_a_defense_that_makes_no_sense_is_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        _repair(tiny_vit(), name, accept=True)


def test_a_model_without_a_linear_head_is_repaired_by_what_needs_none() -> None:
    with pytest.raises(ModelError, match="fst needs one linear layer"):
        _repair(Headless(), "fst", accept=True)
    with pytest.raises(ModelError, match="d3 needs one linear layer"):
        _repair(Headless(), "d3", accept=True)
    with pytest.raises(ModelError, match="fp needs one linear layer"):
        _repair(Headless(), "fp", accept=True)
    assert _repair(Headless(), "super_ft", accept=True).report["displacement"]["distance"] > 0


@pytest.mark.parametrize("name", BY_OWNING[PoisonedData])
def test_defenses_on_the_poisoned_training_set_are_refused_by_name(name: str, own_model: PlainCNN) -> None:
    with pytest.raises(DataError, match=f"defense {name} needs the training set with the poison in it"):
        _repair(own_model, name)


def test_the_same_seed_gives_the_same_weights_though_the_model_has_dropout(own_model: PlainCNN) -> None:
    torch.manual_seed(5)
    one = _repair(own_model).model.state_dict()
    torch.manual_seed(6)
    other = _repair(own_model).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = _repair(own_model, seed=1).model.state_dict()
    assert not torch.equal(one["fc.weight"], third["fc.weight"])


def test_the_repair_never_sees_the_held_out_part() -> None:
    parts = split(own_images(), 10, seed=0)
    rows = [
        {image.numpy().tobytes() for image in part.images} for part in (parts.train, parts.validation, parts.held_out)
    ]
    assert [len(part) for part in rows] == [140, 20, 40]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert all(len(part.labels.unique()) == 10 for part in (parts.train, parts.validation, parts.held_out))


def test_a_half_precision_model_comes_back_in_half_precision(own_model: PlainCNN) -> None:
    half = copy.deepcopy(own_model).half()
    state = _repair(half).model.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {n: v.dtype for n, v in half.state_dict().items()}


def test_a_repair_that_moved_nothing_says_so(own_model: PlainCNN) -> None:
    weak = _repair(own_model, "ft", settings={"steps": 6, "lr": 1e-9, "weight_decay": 0.0}).report
    assert weak["moved"] is False
    assert any("the repair hardly moved" in line for line in weak["warnings"])
    strong = _repair(own_model, "ft", settings={"steps": 12, "lr": 1.0, "schedule": "constant"}).report
    assert strong["moved"] is True
    assert strong["loss"]["rise"] > 0
    assert not any("hardly moved" in line for line in strong["warnings"])


def test_the_losses_that_are_told_are_means_over_five_steps() -> None:
    still = Movement(loss_rise([2.0, *[1.0] * 5, 3.0]), 0.0, 0.0, 0.0)
    told = moved(still, History(loss=[2.0, *[1.0] * 5, 3.0]))["loss"]
    assert told == {
        "trained": True,
        "first": 2.0,
        "highest": pytest.approx(1.4),
        "last": pytest.approx(1.4),
        "rise": pytest.approx(1.4 - 2.0),
    }
    assert moved(Movement(None, 0.0, 0.0, 0.0), History())["loss"] == {"trained": False}


def test_the_rates_are_those_of_the_held_out_images(own_model: PlainCNN) -> None:
    report = _repair(own_model, "none").report
    held = split(own_images(), 10, seed=0).held_out
    shift = (held.images.float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        right = int((own_model(shift).argmax(1) == held.labels).sum())
    assert report["clean_accuracy_before"]["count"] == right  # float32 or bfloat16: no close calls on shapes
    assert report["agreement"]["rate"] == 1.0
    low, high = report["clean_accuracy_before"]["interval"]
    assert low <= right / 40 <= high


def test_another_normalisation_is_noticed_and_named(own_model: PlainCNN) -> None:
    """The model wants (x - 0.5) / 0.25 or about that; 0 and 1 leave it lost, where -1 to 1 is close enough."""
    with pytest.raises(DataError, match=r"give --mean 0\.\d+,.* --std"):
        _repair(own_model, mean=(0.9, 0.9, 0.9), std=(4.0, 4.0, 4.0))


def test_normalisations_are_compared_on_images_of_all_classes(
    own_model: PlainCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a folder come class by class; a normalisation that sends everything to one class suits its images."""
    asked: list[torch.Tensor] = []

    def spy(model: torch.nn.Module, images: torch.Tensor, **given: Any) -> torch.Tensor:
        asked.append(images)
        return predict(model, images, **given)

    clean = own_images()
    order = clean.images.labels.argsort(stable=True)
    sorted_by_class = CleanImages(clean.images.subset(order), clean.classes, "own")
    monkeypatch.setattr(repair, "ASKED", 40)
    monkeypatch.setattr(repair, "predict", spy)
    _repair(own_model, "none", clean=sorted_by_class)
    few = next(images for images in asked if len(images) == 40 and not torch.equal(images, asked[0]))
    labels = [int(clean.images.labels[(clean.images.images == one).flatten(1).all(1)][0]) for one in few]
    assert len(set(labels)) == 10


def test_images_that_the_model_does_not_know_are_refused(own_model: PlainCNN) -> None:
    clean = own_images()
    wrong = CleanImages(ImageSet(clean.images.images, (clean.images.labels + 3) % 10), clean.classes, "own")
    with pytest.raises(DataError, match="hardly more than by guessing: --classes"):
        _repair(own_model, clean=wrong)


def test_nan_in_the_weights_is_named(own_model: PlainCNN) -> None:
    broken = copy.deepcopy(own_model)
    with torch.no_grad():
        broken.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"conv2\.weight holds 1 values"):
        _repair(broken)


@pytest.mark.slow
def test_neural_cleanse_is_asked_before_and_after_where_it_is_wanted(own_model: PlainCNN) -> None:
    flags = _repair(own_model, neural_cleanse=True).report["neural_cleanse"]
    assert len(flags["before"]["mask_norms"]) == len(flags["after"]["mask_norms"]) == 10
