"""Claims of the channel Lipschitz pruning defense."""

import copy
import math

import pytest
import torch
from torch import nn

from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject
from trainables.data.images import Dataset
from trainables.defenses.base import NoData, Repair
from trainables.defenses.clp import ChannelLipschitzPruning
from trainables.models.build import build_model
from trainables.models.channels import batch_norms, spectral_norms
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def model(width: int = 16) -> Classifier:
    return build_model("preact_resnet18", num_classes=4, width=width, generator=torch.Generator().manual_seed(0)).eval()


def prune(model: Classifier, trainer: Trainer, **settings: object) -> Repair:
    return ChannelLipschitzPruning(**settings).repair(model, NoData(), trainer)  # type: ignore[arg-type]


def pruned_channels(before: Classifier, after: Classifier) -> dict[str, list[int]]:
    found = {}
    for (name, old), new in zip(batch_norms(before).items(), batch_norms(after).values(), strict=True):
        gone = ((old.weight != new.weight) | (old.bias != new.bias)).nonzero()[:, 0].tolist()
        if gone:
            found[name] = gone
    return found


def plant(victim: Classifier, name: str, channel: int, strength: float) -> None:
    """A rank-1 kernel of that spectral norm in one output channel."""
    kernels = victim.get_parameter(f"{name}.weight")
    row = torch.zeros(kernels.shape[1])
    row[0] = strength
    window = torch.ones(kernels[0, 0].numel()) / math.sqrt(kernels[0, 0].numel())
    with torch.no_grad():
        kernels[channel] = torch.outer(row, window).view_as(kernels[channel])


def even(victim: Classifier) -> Classifier:
    """Every channel of every kernel at spectral norm 1, so that a planted one is the only outlier."""
    with torch.no_grad():
        for module in victim.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.div_(spectral_norms(module.weight)[:, None, None, None].to(module.weight.dtype))
    return victim


def test_planted_rank_one_channel_is_the_only_one_pruned(trainer: Trainer) -> None:
    victim = even(model())
    plant(victim, "stages.2.0.conv1", 7, 50.0)
    with torch.no_grad():
        batch_norms(victim)["stages.2.0.bn2"].bias.fill_(0.5)
    before = copy.deepcopy(victim)
    repair = prune(victim, trainer)
    assert pruned_channels(before, victim) == {"stages.2.0.bn2": [7]}
    assert repair.notes["pruned"] == 1
    norm = batch_norms(victim)["stages.2.0.bn2"]
    assert (float(norm.weight.detach()[7]), float(norm.bias.detach()[7])) == (0.0, 0.0)


def test_channel_planted_before_a_residual_sum_is_pruned_only_by_last_conv(trainer: Trainer) -> None:
    for pair_mode, expected in (("skip", {}), ("last_conv", {"stages.2.1.bn1": [3]})):
        victim = even(model())
        plant(victim, "stages.2.0.conv2", 3, 50.0)
        before = copy.deepcopy(victim)
        prune(victim, trainer, pair_mode=pair_mode)
        assert pruned_channels(before, victim) == expected


@pytest.mark.parametrize("pair_mode", ["skip", "last_conv"])
def test_shortcut_convolutions_decide_nothing(pair_mode: str, trainer: Trainer) -> None:
    # Pairing by module order would tie the 1x1 shortcut to the next block's BN.
    victim = even(model())
    plant(victim, "stages.2.0.shortcut", 3, 50.0)
    before = copy.deepcopy(victim)
    assert prune(victim, trainer, pair_mode=pair_mode).status == "abstained"
    assert pruned_channels(before, victim) == {}


def test_gamma_and_running_variance_count_with_the_kernel(trainer: Trainer) -> None:
    victim = even(model())
    norm = batch_norms(victim)["stages.2.0.bn2"]
    with torch.no_grad():
        norm.weight[4] = -30.0
        assert norm.running_var is not None
        norm.running_var[9] = 1e-3
    before = copy.deepcopy(victim)
    prune(victim, trainer)
    assert pruned_channels(before, victim) == {"stages.2.0.bn2": [4, 9]}


def test_a_dead_channel_of_variance_zero_is_finite_because_of_eps(trainer: Trainer) -> None:
    victim = even(model())
    norm = batch_norms(victim)["stages.2.0.bn2"]
    with torch.no_grad():
        assert norm.running_var is not None
        norm.running_var[2] = 0.0
        norm.weight[2] = 0.0  # 0 / 0 without eps: not a number, and every comparison of the layer false
        norm.weight[5] = 30.0
    before = copy.deepcopy(victim)
    prune(victim, trainer)
    assert pruned_channels(before, victim) == {"stages.2.0.bn2": [5]}


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scaling_a_whole_layer_changes_nothing(scale: float, trainer: Trainer) -> None:
    one, other = model(), model()
    with torch.no_grad():
        other.get_parameter("stages.3.1.conv1.weight").mul_(scale)
    before_one, before_other = copy.deepcopy(one), copy.deepcopy(other)
    prune(one, trainer, u=1.0)
    prune(other, trainer, u=1.0)
    found = pruned_channels(before_one, one)
    assert found["stages.3.1.bn2"]
    assert found == pruned_channels(before_other, other)


@pytest.mark.parametrize("u", [1e9, math.inf])
def test_u_without_bound_is_the_identity(u: float, toy: Dataset, toy_victim: Victim) -> None:
    subject = Subject("clp", toy_victim, toy)
    if math.isfinite(u):
        assert_identity(subject, u=u, pair_mode="last_conv")
    run, _ = subject.run(ChannelLipschitzPruning(u=u))
    assert run.repair.status == "abstained"


def test_fewer_deviations_prune_more(trainer: Trainer) -> None:
    counts = [prune(model(), trainer, u=u).notes["pruned"] for u in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"u": -1.0}, "u must be"), ({"u": math.nan}, "u must be"), ({"pair_mode": "all"}, "pair_mode must be")],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChannelLipschitzPruning(**settings)  # type: ignore[arg-type]
