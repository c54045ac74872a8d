"""What is asked of the aftermath of a repair: re-injection, retuning, membership inference, the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

# The defense that changes nothing, whose model is the undefended one, and the one that starts from random weights.
UNDEFENDED, FROM_SCRATCH = "none", "scratch"
# The word for the attack's own poison rate, and what it means for an attack that poisons no training set.
ORIGINAL, RATE_WITHOUT_POISON = "original", 0.1

MembershipAttack = Literal["loss", "entropy", "shadow", "lira"]
MEMBERSHIP_ATTACKS: tuple[MembershipAttack, ...] = get_args(MembershipAttack)


@dataclass(frozen=True)
class Arm:
    """One re-injection: an amount of poison and a learning rate.

    Args:
        name: of the amount, for people: ``original rate``, ``rate 0.01``, ``5 images``.
        rate: share of the attacker's training set that is poisoned; None where ``count`` says it.
        count: number of poisoned images; None where ``rate`` says it.
        lr: learning rate, constant.
    """

    name: str
    rate: float | None
    count: int | None
    lr: float


@dataclass(frozen=True)
class Reinjection:
    """The attacker trains the repaired model further, on data that is poisoned as before.

    Every amount of poison is tried at every rate, each on a copy of the repaired model.

    Args:
        rates: shares of the attacker's training set in (0, 1], or ``original``: the attack's own.
        counts: numbers of poisoned images, >= 0; 0 asks whether clean training alone brings the backdoor back.
        lrs: constant learning rates, > 0. Sha et al. train at 0.001.
        epochs: passes over the attacker's training set, > 0.
        batch_size: images per step, >= 2.
    """

    rates: tuple[float | str, ...] = (ORIGINAL, 0.01, 0.001)
    counts: tuple[int, ...] = (5, 10, 50)
    lrs: tuple[float, ...] = (0.001,)
    epochs: float = 50.0
    batch_size: int = 256

    def arms(self, own_rate: float) -> Iterator[Arm]:
        """All of them for an attack of poison rate ``own_rate``: the rates first, and the learning rates innermost."""
        for rate in self.rates:
            name = f"{ORIGINAL} rate" if rate == ORIGINAL else f"rate {rate:g}"
            for lr in self.lrs:
                yield Arm(name, own_rate if rate == ORIGINAL else float(rate), None, lr)
        for count in self.counts:
            for lr in self.lrs:
                yield Arm(f"{count} image{'' if count == 1 else 's'}", None, count, lr)


@dataclass(frozen=True)
class Retuning:
    """A short fine-tuning on few images, some of them poisoned, see `retuning`.

    Args:
        share: of the attacker's training set that is trained on, in (0, 1].
        counts: how many of these images carry the trigger, >= 0 each; 0 is the comparison.
        draws: of the images, >= 1: with so few of them, which they are decides much.
    """

    share: float = 0.02
    counts: tuple[int, ...] = (0, 5)
    draws: int = 5


@dataclass(frozen=True)
class Membership:
    """Somebody with the repaired model asks whether an image was in the training set.

    Args:
        images: members, and as many non-members, >= 20; None: 5,000, or as many as the data have.
        attacks: ``loss``, ``entropy``, ``shadow``, ``lira``, see `membership`.
        shadows: models that ``lira`` trains, >= 2; ``shadow`` needs one.
        adaptive: shadow models go through the same attack and the same repair; False: they are trained on clean data
            and not repaired.
    """

    images: int | None = None
    attacks: tuple[MembershipAttack, ...] = ("loss", "entropy", "shadow")
    shadows: int = 16
    adaptive: bool = True

    @property
    def shadow_models(self) -> int:
        """How many shadow models the attacks need."""
        return self.shadows if "lira" in self.attacks else int("shadow" in self.attacks)


@dataclass(frozen=True)
class Connectivity:
    """The straight way from the repaired weights back to the backdoored ones is measured, see `connectivity`.

    Args:
        points: on the way, evenly spaced, both ends included, >= 2.
    """

    points: int = 11


# Images per side where a study names no number; section 18.1 of the protocol that this follows is in docs/results.md.
MEMBERSHIP_IMAGES = 5000


@dataclass(frozen=True)
class Aftermath:
    """What is measured on a repaired model once its own numbers are taken; None: not asked for."""

    reinjection: Reinjection | None = None
    retuning: Retuning | None = None
    membership: Membership | None = None
    connectivity: Connectivity | None = None


# What may be asked; each also names the column of a row that holds what was found.
PARTS = tuple(part.name for part in dataclasses.fields(Aftermath))
