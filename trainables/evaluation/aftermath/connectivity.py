"""The straight way from a repaired model back to the backdoored one: how soon does the backdoor return on it?

After "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense" (2024, arXiv:2410.09838),
which calls it linear mode connectivity: a repair that only stepped aside finds the backdoor again a small part of the
way back. Weights at share t are (1 - t) of the repaired model and t of the backdoored one; nothing is trained.

Batch normalisation decides much on such a way, so it is walked twice: with running statistics between those of the two
models (``interpolated``), and with those that each point has on clean training images (``refreshed``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.attacks.base import Attack
from trainables.data.images import DataError, ImageSet, TriggeredSet
from trainables.evaluation.aftermath.further_training import rates, report_part
from trainables.evaluation.aftermath.settings import Connectivity
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.training.loop import Counters, refresh_statistics
from trainables.training.trainer import Trainer

INTERPOLATED, REFRESHED = "interpolated", "refreshed"
# Clean training images for the statistics of a point: 5 % of CIFAR-10.
REFRESH_IMAGES = 2500


def check_connectivity(attack: Attack) -> None:
    """Refuse, before any work, an attack without a backdoor to go back to (DataError)."""
    if not attack.implants_backdoor:
        raise DataError(
            f"aftermath.connectivity: attack {attack.name} has no backdoor to go back to; leave it out of attacks, or "
            "leave connectivity out"
        )


def planned_work(settings: Connectivity, n: int, n_measured: int) -> Counters:
    """The work for one model with batch normalisation, before it is done; one without is walked once.

    Args:
        n: the attacker's training images.
        n_measured: clean and triggered test images of the report half.
    """
    return Counters(forward_samples=settings.points * (2 * n_measured + min(n, REFRESH_IMAGES)))


@exact_float32()
@torch.no_grad()
def walk(
    settings: Connectivity,
    model: Classifier,
    backdoored: Classifier,
    *,
    train: ImageSet,
    test: ImageSet,
    triggered: TriggeredSet,
    trainer: Trainer,
    seed: int,
) -> list[dict[str, Any]]:
    """Both walks, or the one of a model without running statistics.

    Args:
        model, backdoored: the ends; both stay as they are.
        train: the attacker's clean training set.
        test, triggered: of which the report half is measured on.
        trainer: counts the work.
        seed: of the draw of training images, the same for all models of a victim.

    Returns:
        JSON-able records: ``statistics``; ``share``, ``asr``, ``clean_accuracy`` at every point, from the repaired
        model (share 0) to the backdoored one (1); and their `summary`.
    """
    halves, between = report_part(test, triggered), copy.deepcopy(model)
    shares = [round(point / (settings.points - 1), 6) for point in range(settings.points)]
    drawn = torch.randperm(len(train), generator=generator_for(seed, "connectivity"))[:REFRESH_IMAGES]
    images = train.images[drawn.to(train.images.device)]
    start, end = ({name: tensor.clone() for name, tensor in one.state_dict().items()} for one in (model, backdoored))
    records = []
    for statistics in (INTERPOLATED, REFRESHED) if _has_statistics(model) else (INTERPOLATED,):
        measured = []
        for share in shares:
            between.load_state_dict(interpolated(start, end, share))
            if statistics == REFRESHED:
                refresh_statistics(between, images, counters=trainer.counters)
            measured.append([round(rate, 5) for rate in rates(between.eval(), *halves, trainer)])
        asr, accuracy = ([one[at] for one in measured] for at in (0, 1))
        walked = {"statistics": statistics, "share": shares, "asr": asr, "clean_accuracy": accuracy}
        records.append(walked | summary(shares, asr, accuracy))
    return records


def interpolated(repaired: Mapping[str, Tensor], backdoored: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The state at ``share`` of the way; at 0 and 1 exactly the ends. What is no float is the repaired model's."""
    return {
        name: torch.lerp(tensor, backdoored[name].to(tensor), share) if tensor.is_floating_point() else tensor
        for name, tensor in repaired.items()
    }


def summary(shares: list[float], asr: list[float], accuracy: list[float]) -> dict[str, float]:
    """What a walk comes to.

    Returns:
        ``share_half``: the first measured share with an ASR of half-way between those of the ends, or more (0 where the
        repaired model's is no lower than the backdoored one's). ``barrier``: mean of 1 - ASR over the way, by
        trapezoids. ``accuracy_lowest``: of the way, since a point that classifies nothing has no backdoor either.
    """
    half = (asr[0] + asr[-1]) / 2
    reached = next(share for share, rate in zip(shares, asr, strict=True) if rate >= half or share == shares[-1])
    pairs = zip(shares, shares[1:], asr, asr[1:], strict=False)
    barrier = sum((b - a) * (1 - (x + y) / 2) for a, b, x, y in pairs)
    return {"share_half": reached, "barrier": round(barrier, 5), "accuracy_lowest": min(accuracy)}


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
