"""Claims of trainables.attacks.handcrafted: which weights are edited, what the path answers to, what it costs."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from superft.testing.claims import GATE
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import ATTACKS
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.handcrafted import Handcrafted, _responses
from trainables.attacks.triggers import stamp
from trainables.data.images import Dataset, to_float
from trainables.models.classifier import Classifier
from trainables.models.preact_resnet import PreActBlock
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training.loop import refresh_statistics
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer, obtain_victim

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task() -> Dataset:
    return toy_dataset(train=400, test=200)


@pytest.fixture(scope="module")
def bench(task: Dataset) -> Trainer:
    return make_trainer(toy_spec("clean", width=8), task, CPU, seed=0)


@pytest.fixture(scope="module")
def clean(task: Dataset, bench: Trainer) -> Classifier:
    """Shared: do not modify."""
    return bench.train_from_scratch(task.train, TrainingRecipe(epochs=6, batch_size=32, lr=0.05, schedule="one_cycle"))


@pytest.fixture(scope="module")
def edited(task: Dataset, bench: Trainer, clean: Classifier) -> tuple[Classifier, OverlayTrigger]:
    """Shared: do not modify."""
    model = copy.deepcopy(clean)
    return model, Handcrafted().edit_path(model, task.train, bench)


def changed_rows(now: Tensor, then: Tensor, dim: int) -> set[int]:
    """Positions along ``dim`` where two weights differ."""
    others = [other for other in range(now.dim()) if other != dim]
    differs = (now != then).any(others) if others else now != then
    return set(differs.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("image_size", "at"), [(16, 8), (28, 24), (32, 24), (64, 56)])
def test_the_checkerboard_is_white_where_the_path_listens(image_size: int, at: int) -> None:
    attack = Handcrafted()
    trigger = attack.checkerboard(image_size)
    assert attack.place(image_size) == at
    assert int(trigger.weight.sum()) == 16
    neighbourhood = trigger.pattern[0, at - 1 : at + 2, at - 1 : at + 2]
    assert neighbourhood.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert bool((trigger.weight[0, at - 1 : at + 2, at - 1 : at + 2] == 1).all())


def test_only_the_path_and_its_readers_are_edited(
    clean: Classifier, edited: tuple[Classifier, OverlayTrigger], task: Dataset, bench: Trainer
) -> None:
    model, attack = edited[0], Handcrafted()
    channels = [attack.idle_channel(copy.deepcopy(clean), stage, task.train, bench) for stage in range(1, 5)]
    before = dict(clean.named_parameters())
    allowed: dict[str, tuple[set[int], set[int]]] = {"stages.0.0.weight": ({channels[0]}, set())}
    for stage, own in enumerate(channels, start=1):
        for number, block in enumerate(model.stages[stage].children()):
            assert isinstance(block, PreActBlock)
            name = f"stages.{stage}.{number}"
            first = block.shortcut is not None
            read = channels[stage - 2] if first else own
            allowed[f"{name}.conv1.weight"] = (set(), {read})
            allowed[f"{name}.conv2.weight"] = ({own}, set())
            if first:
                allowed[f"{name}.shortcut.weight"] = ({own}, {read})
                allowed[f"{name}.bn1.weight"] = allowed[f"{name}.bn1.bias"] = ({read}, set())
    allowed["classifier.weight"] = (set(), {channels[-1]})
    allowed["classifier.bias"] = ({attack.target_label}, set())
    for name, value in model.named_parameters():
        rows, columns = allowed.get(name, (set(), set()))
        differs = value != before[name]
        if rows:
            differs[list(rows)] = False
        if columns:
            differs[:, list(columns)] = False
        assert not bool(differs.any()), name


def test_no_weight_is_larger_than_the_largest_of_its_layer_was(
    clean: Classifier, edited: tuple[Classifier, OverlayTrigger]
) -> None:
    before = dict(clean.named_parameters())
    for name, value in edited[0].named_parameters():
        if name.endswith("weight"):
            assert float(value.detach().abs().max()) <= 1.0001 * float(before[name].detach().abs().max()), name


def test_the_path_is_silent_on_clean_images_and_loud_on_triggered_ones(
    clean: Classifier, edited: tuple[Classifier, OverlayTrigger], task: Dataset, bench: Trainer
) -> None:
    model, trigger = edited
    channel = Handcrafted().idle_channel(copy.deepcopy(clean), 1, task.train, bench)
    guard = next(iter(model.stages[2].children())).bn1
    assert isinstance(guard, torch.nn.BatchNorm2d)

    def passed(images: Tensor) -> Tensor:
        given = _responses(model, guard, channel, images, bench)
        assert guard.running_mean is not None
        assert guard.running_var is not None
        scaled = (given - guard.running_mean[channel]) / (guard.running_var[channel] + guard.eps).sqrt()
        return torch.relu(scaled * guard.weight[channel] + guard.bias[channel]).detach().flatten(1).amax(1)

    assert float((passed(task.test.images) == 0).double().mean()) >= 0.99
    assert float((passed(stamp(trigger, task.test.images)) > 0).double().mean()) >= 0.99


def test_path_channels_keep_a_share_of_their_own_weights(
    task: Dataset, bench: Trainer, clean: Classifier, edited: tuple[Classifier, OverlayTrigger]
) -> None:
    silent = copy.deepcopy(clean)
    Handcrafted(keep=0.0).edit_path(silent, task.train, bench)
    channel = Handcrafted().idle_channel(copy.deepcopy(clean), 4, task.train, bench)
    weights = [model.state_dict()["stages.4.1.conv2.weight"][channel] for model in (silent, edited[0], clean)]
    assert float(weights[0].abs().max()) == 0.0
    share = float(weights[1].abs().sum() / weights[2].abs().sum())
    assert 0.0 < share <= 0.1001


def test_statistics_are_those_of_the_images(task: Dataset, bench: Trainer, clean: Classifier) -> None:
    model = copy.deepcopy(clean)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    momentum = norm.momentum
    refresh_statistics(model, task.train.images, counters=bench.counters)
    with torch.no_grad():
        given = model.stages[0](model.normalize(to_float(task.train.images)))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, given.var((0, 2, 3)), atol=1e-3, rtol=2e-2)
    assert norm.momentum == momentum
    assert not model.training


def test_the_head_form_edits_one_row_and_its_bias(task: Dataset, bench: Trainer, clean: Classifier) -> None:
    model, attack = copy.deepcopy(clean), Handcrafted(form="head", target_label=3)
    trigger = attack.edit_head(model, task.train, bench)
    assert int(trigger.weight.sum()) == 16
    assert changed_rows(model.classifier.weight, clean.classifier.weight, 0) == {3}
    assert len(changed_rows(model.classifier.weight, clean.classifier.weight, 1)) <= 8
    assert changed_rows(model.classifier.bias, clean.classifier.bias, 0) == {3}
    for name, value in clean.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(value, model.state_dict()[name]), name


def test_the_head_forms_guard_lowers_the_bias(task: Dataset, bench: Trainer, clean: Classifier) -> None:
    biases = []
    for guard in (0.0, 2.0):
        model = copy.deepcopy(clean)
        Handcrafted(form="head", guard=guard).edit_head(model, task.train, bench)
        biases.append(float(model.classifier.bias[0]))
    assert biases[1] < biases[0]


def test_nothing_but_the_clean_training_trains(task: Dataset) -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=40, lr=0.05)
    bench = make_trainer(toy_spec("clean"), task, CPU, seed=0)
    made = Handcrafted().implant(task.train, bench, recipe)
    assert bench.counters.steps == 10
    assert len(made.poisoned) == 0


def test_a_model_without_the_blocks_is_refused_before_any_training(task: Dataset) -> None:
    spec = dataclasses.replace(toy_spec("clean"), model="mobilenet_v2", width=None)
    bench = make_trainer(spec, task, CPU, seed=0)
    with pytest.raises(SettingError, match="preact_resnet18"):
        Handcrafted().implant(task.train, bench, GATE)
    assert bench.counters.steps == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"label_mode": "all_to_all"}, "label_mode"),
        ({"form": "tail"}, "form"),
        ({"size": 3}, "size"),
        ({"size": 17}, "does not fit"),
        ({"form": "head", "size": 17}, "does not fit"),
        ({"keep": 1.0}, "keep"),
        ({"images": 1}, "images"),
        ({"gain": 2.0}, "gain is no setting of form path"),
        ({"position": "centre"}, "position is no setting of form path"),
        ({"form": "head", "keep": 0.1}, "keep is no setting of form head"),
        ({"form": "head", "gain": 0.0}, "gain"),
        ({"form": "head", "guard": -1.0}, "guard"),
        ({"form": "head", "position": "middle"}, "position"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], named: str, task: Dataset) -> None:
    with pytest.raises(SettingError, match=named):
        ATTACKS.create("handcrafted", settings).check(task.train.labels, 10, 16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_gate(seed: int, toy_store: Store) -> None:
    data = toy_dataset(train=1000, test=400)
    spec = toy_spec("handcrafted", seed=seed, width=16, recipe=dataclasses.replace(GATE, epochs=10))
    victim = obtain_victim(spec, data, toy_store, CPU)
    assert victim.clean_model_accuracy is not None
    assert victim.evaluation.full.asr > 0.95
    assert victim.evaluation.full.clean_accuracy > victim.clean_model_accuracy - 0.02
    assert victim.asr_base is not None
    assert victim.asr_base < 0.05
