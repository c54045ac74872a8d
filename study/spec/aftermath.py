"""The keys below ``aftermath``: what is asked of a repaired model once the repair itself is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from study.spec.part import Part
from trainables.evaluation.aftermath.settings import (
    MEMBERSHIP_ATTACKS,
    ORIGINAL,
    Aftermath,
    Connectivity,
    Membership,
    MembershipAttack,
    Reinjection,
    Retuning,
)

FEWEST = 20  # images per side: below, an AUC says nothing
_Rate = Annotated[float, Field(gt=0)]


class ReinjectionPart(Part):
    """How the attacker trains a repaired model further, see `Reinjection`."""

    rates: list[float | str] = Field(default_factory=lambda: list(Reinjection.rates))
    counts: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: list(Reinjection.counts))
    lrs: Annotated[list[_Rate], Field(min_length=1)] = Field(default_factory=lambda: list(Reinjection.lrs))
    epochs: Annotated[float, Field(gt=0)] = Reinjection.epochs
    batch_size: Annotated[int, Field(ge=2)] = Reinjection.batch_size

    @field_validator("rates")
    @classmethod
    def _shares_or_original(cls, value: list[float | str]) -> list[float | str]:
        for rate in value:
            if rate != ORIGINAL and not (isinstance(rate, float | int) and 0 < rate <= 1):
                raise ValueError(f"each must be in (0, 1], or {ORIGINAL}, got {rate!r}")
        return value

    @field_validator("counts")
    @classmethod
    def _some_poison(cls, value: list[int], info: Any) -> list[int]:
        if not value and not info.data.get("rates", [0]):
            raise ValueError("rates and counts are both empty; name at least one amount of poison")
        return value

    def resolved(self) -> Reinjection:
        """The same for `trainables`."""
        return Reinjection(tuple(self.rates), tuple(self.counts), tuple(self.lrs), self.epochs, self.batch_size)


class RetuningPart(Part):
    """A short fine-tuning on few images, some of them poisoned, see `Retuning`."""

    share: Annotated[float, Field(gt=0, le=1)] = Retuning.share
    counts: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: list(Retuning.counts)
    )
    draws: Annotated[int, Field(ge=1)] = Retuning.draws

    def resolved(self) -> Retuning:
        """The same for `trainables`."""
        return Retuning(self.share, tuple(self.counts), self.draws)


class MembershipPart(Part):
    """Who asks whether an image was in the training set, and how, see `Membership`."""

    images: Annotated[int, Field(ge=FEWEST)] | None = Membership.images
    attacks: Annotated[list[MembershipAttack], Field(min_length=1)] = Field(
        default_factory=lambda: list(Membership.attacks)
    )
    shadows: Annotated[int, Field(ge=2)] = Membership.shadows
    adaptive: bool = Membership.adaptive

    def resolved(self) -> Membership:
        """The same for `trainables`; the attacks in their usual order, each once."""
        attacks = tuple(name for name in MEMBERSHIP_ATTACKS if name in self.attacks)
        return Membership(self.images, attacks, self.shadows, self.adaptive)


class ConnectivityPart(Part):
    """The straight way back to the backdoored weights, see `Connectivity`."""

    points: Annotated[int, Field(ge=2)] = Connectivity.points

    def resolved(self) -> Connectivity:
        """The same for `trainables`."""
        return Connectivity(self.points)


class AftermathPart(Part):
    """What becomes of repaired models. ``trials``: of the baselines' alone, or of every searched setting's too."""

    trials: Literal["baselines", "all"] = "baselines"
    reinjection: ReinjectionPart | None = None
    retuning: RetuningPart | None = None
    membership: MembershipPart | None = None
    connectivity: ConnectivityPart | None = None

    def resolved(self) -> Aftermath | None:
        """The same for `trainables`; None: nothing is asked."""
        asked = Aftermath(
            None if self.reinjection is None else self.reinjection.resolved(),
            None if self.retuning is None else self.retuning.resolved(),
            None if self.membership is None else self.membership.resolved(),
            None if self.connectivity is None else self.connectivity.resolved(),
        )
        return None if asked == Aftermath() else asked
