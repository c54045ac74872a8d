"""Smaller parts of a spec: victims, resources, scenario, curves, plug-ins."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from study.spec.part import Part
from trainables.registry import nearest
from trainables.training.recipes import RECIPES


class VictimPart(Part):
    """How victims are made; keys given here go over the recipe's own.

    ``require_implanted``: what becomes of trials on a victim without a backdoor. ``stop``: the study ends before any
    trial. ``skip``: they are not run. ``run``: they run, and count in no front.
    """

    recipe: str | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    poison_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    require_implanted: Literal["stop", "skip", "run"] = "skip"

    @field_validator("recipe")
    @classmethod
    def _known_recipe(cls, value: str | None) -> str | None:
        if value is not None and value not in RECIPES:
            raise ValueError(f"unknown recipe {value!r}: {nearest(value, RECIPES)}")
        return value


class Resources(Part):
    """What one trial takes. ``gpus_per_trial``: a fraction 1/k, a whole number, or ``auto``: measured for every kind.

    ``trial_seconds``: a trial that takes longer is cut and recorded as failed; none by default. Its data and victim are
    loaded within this time too.
    """

    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    trial_seconds: Annotated[float, Field(gt=0)] | None = None

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _one_over_k(cls, value: Any) -> Any:
        fits = value == "auto"
        if isinstance(value, str) and re.fullmatch(r"1/([1-9]\d?|100)", value):
            return 1 / int(value[2:])
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            fits = float(value).is_integer() or (0.01 <= value <= 1 and abs(value - 1 / round(1 / value)) < 1e-4)
        if not fits:
            raise ValueError(f"must be auto, 0, a whole number or 1/k (1/2, 0.25, ...), got {value!r}")
        return value


class ScenarioSpec(Part):
    """What ``dataset``, the user's, is to the attacker (Sha et al., section 4).

    ``standalone``: the task that was attacked. ``same-label``: the same task, but half of every class belongs to the
    attacker and half to the user, who takes ``clean_fraction`` of his. ``new-head``: ``upstream`` was attacked, and the
    user puts a new head on the model. ``encoder``: an encoder was attacked that was trained on ``upstream``.
    ``head``: ``fresh``: defenders with clean data train a new head themselves; ``probe``: they get the one that was
    trained on the fixed model, as everybody without data does. ``controls``: run every baseline also on a clean model
    under the same trigger: what a new task does to a model by itself is no merit of a defense. ``clean_control``: the
    same in the scenarios without a new task, where it tells what a defense costs a model that has no backdoor;
    ``undefended``: the clean model is measured as it is, by the baseline ``none`` alone.
    """

    type: Literal["standalone", "same-label", "new-head", "encoder"] = "standalone"
    upstream: str | None = None
    head: Literal["fresh", "probe"] = "fresh"
    controls: bool = True
    clean_control: bool | Literal["undefended"] = False

    @model_validator(mode="after")
    def _upstream_where_there_is_one(self) -> ScenarioSpec:
        if self.has_upstream and self.upstream is None:
            raise ValueError(f"type {self.type} needs scenario.upstream, the data set of the attacker")
        if not self.has_upstream:
            for key in ("upstream", "head", "controls"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no meaning in type {self.type}; leave it out")
        elif self.clean_control:
            raise ValueError(f"clean_control has no meaning in type {self.type}, where controls says it; leave it out")
        return self

    @property
    def has_upstream(self) -> bool:
        """Whether the attacker had another data set than the user."""
        return self.type in ("new-head", "encoder")


class CurveSpec(Part):
    """Rates along every repair, measured by the evaluator, which no defense sees.

    ``every``: ``epoch`` (a pass over the images that the defense trains on) or a number of optimiser steps; left out:
    a model is measured after its repair alone.
    """

    every: Literal["epoch"] | int | None = None

    @field_validator("every", mode="before")
    @classmethod
    def _epoch_or_steps(cls, value: Any) -> Any:
        if value not in ("epoch", None) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"must be epoch or a number of steps >= 1, got {value!r}")
        return value


class PluginPart(Part):
    """A plug-in, as `trainables.plugins.load.Plugin` says it; in a spec of one's own its module or file is enough."""

    module: str
    name: str = ""
    version: str = ""
    source: str = ""
    path: str | None = None
