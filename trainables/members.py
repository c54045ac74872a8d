"""Membership inference on one trial's model: whose membership is asked, and the shadow models of it.

The attacks themselves and their numbers are in `trainables.evaluation.aftermath.membership`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import Attack, DataPoisoning, Kind, PoisonedSamples
from trainables.attacks.in_loop import InLoop
from trainables.attacks.triggers import stamp
from trainables.data.classes import class_members
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.data.split import split_clean
from trainables.defenses.base import DEFENSES, CleanData, Defense, NoData, PoisonedData
from trainables.evaluation.aftermath import membership
from trainables.evaluation.aftermath.settings import MEMBERSHIP_IMAGES, Membership
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed, generator_for
from trainables.storage.memo import Memo
from trainables.storage.store import content_key
from trainables.training.arithmetic import arithmetic
from trainables.training.loop import Counters, DivergedError
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec, attacker_labels
from trainables.victims.victim import Victim

FEWEST_IMAGES = 20


def check_membership(asked: Membership, cell: Cell, settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse, before any work, what cell and data do not allow (DataError, SettingError)."""
    if asked.shadow_models and not cell.victim.make_attack().trains:
        raise DataError(
            f"aftermath.membership: attack {cell.victim.attack} has ready-made weights, so that no shadow model can be "
            "trained as its victim was; leave shadow and lira out of attacks"
        )
    if cell.victim.scenario != "standalone":
        raise DataError(
            f"aftermath.membership: in scenario {cell.scenario} the attacker's training images are of another task; it "
            "needs standalone or same-label"
        )
    pairs = _pairs(cell.victim, dataset, torch.arange(0))
    wanted = FEWEST_IMAGES if asked.images is None else asked.images
    if sum(pairs) < wanted:
        raise DataError(
            f"aftermath.membership.images: {wanted} members and as many non-members were asked for, and data set "
            f"{dataset.name} has {sum(pairs)} of each (training images that were not poisoned, and test images, in "
            f"equal numbers of every class); use at most {sum(pairs)}, or a larger data set"
        )
    if not asked.shadow_models:
        return
    # The smaller of the two halves.
    half = attacker_labels(cell.victim, dataset)[_half(_pool(asked, cell.victim, dataset), cell, dataset, 1)[0]]
    if len(half.unique()) < dataset.num_classes:
        raise DataError(
            "aftermath.membership: half of the training images that are left for shadow models lacks a class; ask for "
            "fewer images, or leave shadow and lira out of attacks"
        )
    if asked.adaptive:
        cell.victim.make_attack().check(half, dataset.num_classes, dataset.image_size)
        defense = DEFENSES.create(cell.defense, settings)
        if defense.owns is CleanData:
            try:
                split_clean(half, cell.clean_fraction, num_classes=dataset.num_classes, seed=0)
            except DataError as error:
                raise DataError(
                    f"aftermath.membership: a shadow model is trained on {len(half)} images, and {error}; or set "
                    "adaptive: false"
                ) from error


def planned_work(asked: Membership, cell: Cell, settings: Mapping[str, Any], dataset: Dataset) -> Counters:
    """Work on the model of one trial, before it is done; that of `shadow_work` is not in it."""
    total, labels = Counters(), attacker_labels(cell.victim, dataset)
    drawn = 2 * _images(asked, cell.victim, dataset)
    total.forward_samples += drawn * (1 + asked.shadow_models)
    defense = DEFENSES.create(cell.defense, settings)
    pool = _pool(asked, cell.victim, dataset)
    for number in range(asked.shadow_models if asked.adaptive else 0):
        own, _ = _half(pool, cell, dataset, number)
        held = (len(own), 0) if defense.owns is PoisonedData else (0, 0)
        if defense.owns is CleanData:
            split = split_clean(labels[own], cell.clean_fraction, num_classes=dataset.num_classes, seed=0)
            held = len(split.train), len(split.validation)
        total += defense.plan_for(dataset.num_classes, *held)
    return total


def shadow_work(asked: Membership, cell: Cell, dataset: Dataset) -> Counters:
    """Work of training the shadow models of one victim, which all of its trials share."""
    total, labels = Counters(), attacker_labels(cell.victim, dataset)
    pool, attack = _pool(asked, cell.victim, dataset), _shadow_spec(asked, cell).make_attack()
    for number in range(asked.shadow_models):
        own, _ = _half(pool, cell, dataset, number)
        total += attack.planned_work(labels[own], cell.victim.recipe)
    return total


def _shadow_spec(asked: Membership, cell: Cell) -> VictimSpec:
    """What shadow models are made like: the victim where their backdoor is to be repaired as well, else its control."""
    return cell.victim.control() if cell.control or not asked.adaptive else cell.victim


def infer_membership(
    asked: Membership,
    model: Classifier,
    cell: Cell,
    settings: Mapping[str, Any],
    dataset: Dataset,
    victim: Victim,
    trainer: Trainer,
    memo: Memo,
) -> list[dict[str, Any]]:
    device, classes = trainer.device, dataset.num_classes
    train, test = dataset.train.subset(victim.attacker_indices), dataset.test
    touched = victim.poisoned.indices
    n = _images(asked, cell.victim, dataset, touched)
    members = _members(n, cell.victim, dataset, touched)
    others = (test.images, test.labels)
    left = _untouched(cell.victim, dataset, touched)
    stream = generator_for(cell.seed, "membership", "clean")
    kept = (train.images[left], train.labels[left])
    clean = membership.draw_group("clean", kept, others, n, classes, stream, left)
    assert clean is not None, "check_aftermath refuses data sets with fewer images"
    groups = [clean]
    if DEFENSES.get(cell.defense).owns is CleanData:
        split = victim.clean_split(dataset, cell.clean_fraction, cell.clean_source, cell.defense_seed)
        held = dataset.train.subset(split.train)
        stream = generator_for(cell.seed, "membership", "defender", cell.defense_seed)
        theirs = torch.full((len(dataset.train),), -1)
        theirs[victim.attacker_indices] = torch.arange(len(train))
        defenders = (held.images, held.labels)
        if drawn := membership.draw_group("defender", defenders, others, n, classes, stream, theirs[split.train]):
            groups.append(drawn)
    if (sides := _poisoned_sides(cell.victim.make_attack(), victim, test)) is not None:
        stream = generator_for(cell.seed, "membership", "poisoned")
        stamped = touched[victim.poisoned.kinds == Kind.POISON]
        if drawn := membership.draw_group("poisoned", *sides, n, classes, stream, stamped):
            groups.append(drawn)
    groups = [dataclasses.replace(group, images=group.images.to(device)) for group in groups]
    pool = _without(len(train), members)

    def shadow(number: int) -> membership.Shadow:
        own, rest = _half(pool, cell, dataset, number)
        repaired, poisoned = _shadow_model(asked, cell, settings, dataset, train, own, number, trainer, memo)
        clean_own = _without(len(own), poisoned)
        at = torch.cat([own[clean_own], rest])
        chosen = train.subset(at)
        member = torch.arange(len(at)) < len(clean_own)
        return membership.Shadow(repaired, chosen.images.to(device), chosen.labels, member, own)

    seed = derive_seed(cell.seed, "membership", "network")
    try:
        return membership.infer(asked, model, groups, shadow, trainer, seed)
    except DivergedError:  # of a shadow model: the repaired one was measured before
        alone = dataclasses.replace(
            asked, attacks=tuple(name for name in asked.attacks if name not in ("shadow", "lira"))
        )
        return membership.infer(alone, model, groups, None, trainer, seed)


def _shadow_model(
    asked: Membership,
    cell: Cell,
    settings: Mapping[str, Any],
    dataset: Dataset,
    train: ImageSet,
    own: Tensor,
    number: int,
    counting: Trainer,
    memo: Memo,
) -> tuple[Classifier, Tensor]:
    """The shadow model of a number, and the positions among ``own`` of what its attack poisoned.

    Args:
        train: the attacker's clean training set, on the CPU.
        own: positions in it of what the shadow model is trained on.
        counting: whose counters count.
    """
    spec = _shadow_spec(asked, cell)
    attack, half = spec.make_attack(), train.subset(own).to(counting.device)
    trainer = make_trainer(spec, dataset, counting.device, seed=derive_seed(cell.seed, "shadow", number))
    trainer.counters, trainer.memo = counting.counters, memo
    how = dict(arithmetic(counting.device, spec.precision))
    # What an attack trains beside its model (a surrogate, an encoder) is of this shadow model and its images alone.
    which = {"number": number, "images": own.tolist()}
    trainer.task = content_key({"victim": spec.name(dataset), "arithmetic": how, "shadow": which})

    def build() -> dict[str, Tensor]:
        made = attack.implant(half, trainer, spec.recipe)
        poisoned = made.poisoned
        return {
            **{f"model.{name}": tensor for name, tensor in made.model.state_dict().items()},
            "indices": poisoned.indices,
            "images": poisoned.images,
            "labels": poisoned.labels,
            "kinds": poisoned.kinds,
            "appended": ~poisoned.in_place,
        }

    tensors = trainer.remember("shadow", which, build)
    model = trainer.fresh_model("shadow-model")
    model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    )
    parts = ("indices", "images", "labels", "kinds", "appended")
    poisoned = PoisonedSamples(**{name: tensors[name].cpu() for name in parts})
    if asked.adaptive:
        defense = DEFENSES.create(cell.defense, settings)
        bench = make_trainer(
            spec, dataset, counting.device, seed=derive_seed(cell.seed, "shadow-defense", number, cell.defense_seed)
        )
        bench.counters = counting.counters
        model = defense.repair(model, _shadow_assets(defense, cell, half, poisoned, dataset), bench).model
    return model.eval(), poisoned.indices


def _shadow_assets(
    defense: Defense, cell: Cell, half: ImageSet, poisoned: PoisonedSamples, dataset: Dataset
) -> NoData | CleanData | PoisonedData:
    """What the defender of the shadow model holds: the same share of its own training set."""
    if defense.owns is PoisonedData:
        return PoisonedData(poisoned.apply(half))
    if defense.owns is CleanData:
        seed = derive_seed(cell.seed, "shadow-split", cell.defense_seed)
        split = split_clean(half.labels, cell.clean_fraction, num_classes=dataset.num_classes, seed=seed)
        return CleanData(half.subset(split.train), half.subset(split.validation))
    return NoData()


def _planned_poison(attack: Attack, labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """Positions that the attack poisons, as far as its seed decides that before it is carried out."""
    if isinstance(attack, DataPoisoning):
        return attack.choose(labels, num_classes, seed)
    if isinstance(attack, InLoop):
        return torch.cat(attack.released_indices(len(labels), seed))
    return torch.arange(0)


def _untouched(spec: VictimSpec, dataset: Dataset, touched: Tensor) -> Tensor:
    """Positions in the attacker's training set of what was not poisoned; of a clean model those of its victim."""
    labels, attack = attacker_labels(spec, dataset), spec.make_attack()
    planned = _planned_poison(attack, labels, dataset.num_classes, spec.seed)
    return _without(len(labels), torch.cat([planned, touched]))


def _pairs(spec: VictimSpec, dataset: Dataset, touched: Tensor) -> list[int]:
    labels = attacker_labels(spec, dataset)[_untouched(spec, dataset, touched)]
    return membership.available_pairs(labels, dataset.test.labels, dataset.num_classes)


def _images(asked: Membership, spec: VictimSpec, dataset: Dataset, touched: Tensor | None = None) -> int:
    """Members that are drawn: as many as asked for, or as there are up to the default."""
    there = sum(_pairs(spec, dataset, torch.arange(0) if touched is None else touched))
    return min(there, MEMBERSHIP_IMAGES if asked.images is None else asked.images)


def _members(n: int, spec: VictimSpec, dataset: Dataset, touched: Tensor) -> Tensor:
    """Positions in the attacker's training set of the members of the group ``clean``."""
    left, stream = _untouched(spec, dataset, touched), generator_for(spec.seed, "membership", "clean")
    labels = attacker_labels(spec, dataset)[left]
    own, _ = membership.draw_pairs(labels, dataset.test.labels, n, dataset.num_classes, stream)
    return left[own]


def _pool(asked: Membership, spec: VictimSpec, dataset: Dataset) -> Tensor:
    """Positions that shadow models may be trained on, as far as they are known before the victim is."""
    members = _members(_images(asked, spec, dataset), spec, dataset, torch.arange(0))
    return _without(len(attacker_labels(spec, dataset)), members)


def _half(pool: Tensor, cell: Cell, dataset: Dataset, number: int) -> tuple[Tensor, Tensor]:
    """Half of every class of the pool, for one shadow model, and the other half.

    Every second model takes the other half of the one before, so that no image was seen by all of them.
    """
    if number % 2:
        return _half(pool, cell, dataset, number - 1)[::-1]
    labels, stream = attacker_labels(cell.victim, dataset)[pool], generator_for(cell.seed, "shadow-half", number)
    own, rest = [], []
    for places in class_members(labels, dataset.num_classes):
        of_class = pool[places]
        order = of_class[torch.randperm(len(of_class), generator=stream)]
        cut = math.ceil(len(order) / 2)
        own.append(order[:cut])
        rest.append(order[cut:])
    return torch.cat(own).sort().values, torch.cat(rest).sort().values


def _poisoned_sides(
    attack: Attack, victim: Victim, test: ImageSet
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Poisoned training images with their labels, and test images alike; None where the victim has no such members.

    Attacks that stamp in the training loop have none: every image of theirs was stamped now and then.
    """
    poison = (victim.poisoned.kinds == Kind.POISON).nonzero()[:, 0]
    if not isinstance(attack, DataPoisoning) or not len(poison):
        return None
    members = (victim.poisoned.images[poison], victim.poisoned.labels[poison])
    if not attack.clean_label:
        return members, (victim.triggered.images, victim.triggered.targets)
    own = test.subset((test.labels == attack.target_label).nonzero()[:, 0])
    return members, (stamp(victim.trigger, own.images), own.labels)


def _without(n: int, positions: Tensor) -> Tensor:
    """0 to n - 1 without ``positions``."""
    left = torch.ones(n, dtype=torch.bool)
    left[positions] = False
    return left.nonzero()[:, 0]
