"""Membership inference: can somebody with the repaired model tell which images it was trained on?

Attacks, by name: ``loss``: the cross-entropy under one threshold (Yeom et al. 2018, arXiv:1709.01604). ``entropy``:
modified entropy under a threshold per class (Song & Mittal 2021, arXiv:2003.10595). ``shadow``: a small network that
learned on a shadow model what the outputs on members look like (Salem et al. 2019, arXiv:1806.01246). ``lira``: how
unusual the confidence is beside that of shadow models that never saw the image, offline and with one variance for all
images (Carlini et al. 2022, arXiv:2112.03570).

All scores are larger for what looks more like a member.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.data.classes import class_members
from trainables.evaluation.aftermath.settings import Membership
from trainables.evaluation.detection import auroc
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.training.predict import logits
from trainables.training.trainer import Trainer

FALSE_POSITIVE_RATES = {"tpr_at_1_percent": 0.01, "tpr_at_01_percent": 0.001}
TOP = 3  # posteriors that the shadow attack sees
_TINY = 1e-30  # under logarithms


@dataclass(frozen=True)
class Group:
    """Images whose membership is asked: as many members as non-members, of the same classes.

    Args:
        name: ``clean``: attack-time training images that were not poisoned; ``defender``: images that the defender
            trained on; ``poisoned``: poisoned training images with the label that they were trained under, against
            triggered test images with that label.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), on the CPU.
        member: bool (N,).
        calibration: bool (N,): the half that thresholds are set on; the other half is judged.
        places: int64 (N,): positions in the attacker's training set; -1 of what is not in it.
    """

    name: str
    images: Tensor
    labels: Tensor
    member: Tensor
    calibration: Tensor
    places: Tensor


@dataclass(frozen=True)
class Shadow:
    """A model of the attacker's own, and what he knows of it.

    Args:
        model: in eval mode.
        images, labels: uint8 (M, 3, H, W) and int64 (M,): some it was trained on, some not.
        member: bool (M,).
        seen: int64: positions in the attacker's training set of all that it was trained on.
    """

    model: Classifier
    images: Tensor
    labels: Tensor
    member: Tensor
    seen: Tensor


def balanced_quotas(available: Sequence[int], n: int) -> list[int]:
    """How many of each class to draw, ``n`` in all: as evenly as the ``available`` ones allow, at most those."""
    quotas = [0] * len(available)
    left = min(n, sum(available))
    while left:
        open_classes = [label for label, most in enumerate(available) if quotas[label] < most]
        share = max(1, left // len(open_classes))
        for label in open_classes:
            more = min(share, available[label] - quotas[label], left)
            quotas[label] += more
            left -= more
    return quotas


def available_pairs(members: Tensor, others: Tensor, num_classes: int) -> list[int]:
    """Pairs of a member and a non-member that each class has, from the labels of all there are."""
    counts = (torch.bincount(labels, minlength=num_classes) for labels in (members, others))
    return [min(pair) for pair in zip(*(count.tolist() for count in counts), strict=True)]


def draw_pairs(
    members: Tensor, others: Tensor, n: int, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Positions of up to ``n`` members and of as many others, the same number of every class, in the same order.

    Args:
        members, others: labels of all there are.
    """
    quotas = balanced_quotas(available_pairs(members, others, num_classes), n)
    chosen = []
    for labels in (members, others):
        own = []
        for of_class, quota in zip(class_members(labels, num_classes), quotas, strict=True):
            own.append(of_class[torch.randperm(len(of_class), generator=generator)[:quota]])
        chosen.append(torch.cat(own))
    return chosen[0], chosen[1]


def draw_group(
    name: str,
    members: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    n: int,
    num_classes: int,
    generator: torch.Generator,
    places: Tensor | None = None,
) -> Group | None:
    """A group of up to ``n`` members and as many others, matched by class; None where there are not 2 pairs.

    Args:
        members, others: images and labels to draw from; the labels on the CPU.
        places: of all members in the attacker's training set, -1 of what is not in it; None: none is.
    """
    own, rest = draw_pairs(members[1], others[1], n, num_classes, generator)
    if len(own) < 2:
        return None
    # Every second pair, so that both halves have all classes.
    calibration = torch.arange(len(own)) % 2 == 0
    outside = torch.full((max(len(members[1]), len(rest)),), -1)
    return Group(
        name,
        torch.cat([members[0][own.to(members[0].device)], others[0][rest.to(others[0].device)]]),
        torch.cat([members[1][own], others[1][rest]]),
        torch.arange(2 * len(own)) < len(own),
        calibration.repeat(2),
        torch.cat([outside[own] if places is None else places[own], outside[: len(rest)]]),
    )


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """-ln of the probability of the label: float64 (N,), from logits (N, K)."""
    return torch.nn.functional.cross_entropy(outputs.double(), labels, reduction="none")


def modified_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """-(1 - p_y) ln p_y - sum over i != y of p_i ln(1 - p_i): (N,), from logits; 0 only where p_y is 1."""
    p = outputs.double().softmax(1)
    at = labels[:, None]
    own = p.gather(1, at)
    rest = p * (1.0 - p).clamp_min(_TINY).log()
    rest = rest.sum(1, keepdim=True) - rest.gather(1, at)
    return (-(1.0 - own) * own.clamp_min(_TINY).log() - rest)[:, 0]


def scaled_confidence(outputs: Tensor, labels: Tensor) -> Tensor:
    """ln p_y - ln of the sum of the others' probabilities: (N,), from logits, without forming a probability."""
    outputs, at = outputs.double(), labels[:, None]
    others = outputs.scatter(1, at, -math.inf).logsumexp(1)
    return outputs.gather(1, at)[:, 0] - others


def best_threshold(scores: Tensor, member: Tensor) -> float:
    """The score from which on "member" has the largest balanced accuracy; of equal ones the smallest."""
    levels = scores.unique()
    tpr = (scores[member] >= levels[:, None]).double().mean(1)
    tnr = (scores[~member] < levels[:, None]).double().mean(1)
    return float(levels[(tpr + tnr).argmax()])


def true_positive_rate(scores: Tensor, member: Tensor, false_positive_rate: float) -> float | None:
    """Largest share of members above a threshold that at most so many others reach; None: too few others to say."""
    others = scores[~member].sort(descending=True).values
    allowed = math.floor(false_positive_rate * len(others) + 1e-9)
    if allowed < 1:
        return None
    # One more false positive than allowed would be the first one left out.
    bar = others[allowed] if allowed < len(others) else torch.tensor(-math.inf)
    return float((scores[member] > bar).double().mean())


def judged(scores: Tensor, group: Group, *, by_class: bool = False) -> dict[str, Any]:
    """How well scores tell members: AUC, balanced accuracy and TPR at low FPR on the half that is judged.

    Args:
        by_class: a threshold per class; the other numbers are then of the distance to it.
    """
    known, test = group.calibration, ~group.calibration
    bars = torch.full_like(scores, best_threshold(scores[known], group.member[known]))
    if by_class:
        for of_class in class_members(group.labels):
            own = of_class[known[of_class]]
            if bool(group.member[own].any()) and not bool(group.member[own].all()):
                bars[of_class] = best_threshold(scores[own], group.member[own])
        scores = scores - bars
        bars = torch.zeros_like(scores)
    scores, member, said = scores[test], group.member[test], (scores >= bars)[test]
    right = [float((said[member]).double().mean()), float((~said[~member]).double().mean())]
    return {
        "auc": auroc(scores, member),
        "balanced_accuracy": sum(right) / 2,
        **{name: true_positive_rate(scores, member, rate) for name, rate in FALSE_POSITIVE_RATES.items()},
    }


@exact_float32()
def infer(
    settings: Membership,
    model: Classifier,
    groups: Sequence[Group],
    shadow: Callable[[int], Shadow] | None,
    trainer: Trainer,
    seed: int,
) -> list[dict[str, Any]]:
    """Every attack on every group, as JSON-able records.

    Args:
        model: the repaired one.
        shadow: the shadow model of a number; asked for `Membership.shadow_models` of them.
        trainer: counts the work.
        seed: of the network that the shadow attack trains.

    Returns:
        Per group and attack: ``group``, ``attack``, ``images`` (judged members; as many non-members), ``auc``,
        ``balanced_accuracy``, ``tpr_at_1_percent``, ``tpr_at_01_percent`` (None where too few non-members are judged:
        at least 100 and 1,000), ``train_accuracy``, ``test_accuracy`` (of the judged members and non-members under the
        group's labels) and ``gap``, their difference.
    """
    outputs = {group.name: _outputs(model, group.images, trainer) for group in groups}
    confidences: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    learned: Callable[[Tensor, Tensor], Tensor] | None = None
    for number in range(settings.shadow_models if shadow is not None else 0):
        assert shadow is not None
        one = shadow(number)
        if number == 0 and "shadow" in settings.attacks:
            learned = _learn(_outputs(one.model, one.images, trainer), one.labels, one.member, seed)
        if "lira" in settings.attacks:
            for group in groups:
                confident = scaled_confidence(_outputs(one.model, group.images, trainer), group.labels)
                confidences[group.name].append(confident.masked_fill(torch.isin(group.places, one.seen), math.nan))
    records = []
    for group in groups:
        own, test = outputs[group.name], ~group.calibration
        right = own.argmax(1) == group.labels
        train_accuracy, test_accuracy = (
            float(right[test & chosen].double().mean()) for chosen in (group.member, ~group.member)
        )
        for attack in settings.attacks:
            match attack:
                case "loss":
                    found = judged(-cross_entropy(own, group.labels), group)
                case "entropy":
                    found = judged(-modified_entropy(own, group.labels), group, by_class=True)
                case "shadow":
                    assert learned is not None
                    found = judged(learned(own, group.labels), group)
                case "lira":
                    found = judged(likelihood_ratio(own, group.labels, confidences[group.name]), group)
            records.append(
                {
                    "group": group.name,
                    "attack": attack,
                    "images": int((test & group.member).sum()),
                    **{name: None if value is None else round(value, 5) for name, value in found.items()},
                    "train_accuracy": round(train_accuracy, 5),
                    "test_accuracy": round(test_accuracy, 5),
                    "gap": round(train_accuracy - test_accuracy, 5),
                }
            )
    return records


def likelihood_ratio(outputs: Tensor, labels: Tensor, unseen: Sequence[Tensor]) -> Tensor:
    """Offline LiRA: how far the confidence lies above that of models that never saw the image, (N,).

    In units of one standard deviation for all images: with few shadow models one per image would be mostly noise. The
    probability that goes with it, Phi of this, has the same order.

    Args:
        unseen: `scaled_confidence` under every shadow model, (N,) each, at least two; NaN where the model was trained
            on the image, which at least one must not have been.
    """
    stack = torch.stack(list(unseen))
    known = ~stack.isnan()
    spread = (stack - stack.nanmean(0)).square()[known].sum() / max(1, int(known.sum()) - stack.shape[1])
    return (scaled_confidence(outputs, labels) - stack.nanmedian(0).values) / spread.sqrt().clamp_min(1e-12)


def _outputs(model: Classifier, images: Tensor, trainer: Trainer) -> Tensor:
    return logits(model, images, precision=trainer.precision, counters=trainer.counters)


def _features(outputs: Tensor, labels: Tensor) -> Tensor:
    """What the shadow attack sees: the largest posteriors, sorted, and the loss."""
    top = outputs.softmax(1).sort(1, descending=True).values[:, :TOP]
    return torch.cat([top, cross_entropy(outputs, labels)[:, None]], 1)


def _learn(outputs: Tensor, labels: Tensor, member: Tensor, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A network of 64 hidden units that tells members of the shadow model from others; it gives logits of "member"."""
    from sklearn.exceptions import ConvergenceWarning  # here: slow to import, and only this attack needs it
    from sklearn.neural_network import MLPClassifier

    seen = _features(outputs, labels)
    mean, std = seen.mean(0), seen.std(0).clamp_min(1e-6)
    # Otherwise the larger side would be the better guess.
    n = min(int(member.sum()), int((~member).sum()))
    stream = generator_for(seed, "membership-network")
    sides = (part.nonzero()[:, 0] for part in (member, ~member))
    kept = torch.cat([side[torch.randperm(len(side), generator=stream)[:n]] for side in sides])
    network = MLPClassifier((64,), max_iter=200, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(((seen - mean) / std)[kept].numpy(), member[kept].numpy())

    def scores(outputs: Tensor, labels: Tensor) -> Tensor:
        inputs = (_features(outputs, labels) - mean) / std
        p = torch.from_numpy(network.predict_proba(inputs.numpy())[:, 1]).double()
        return p.logit(1e-12)

    return scores
