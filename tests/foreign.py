"""Sources of plug-ins as a stranger would write them, for tests that put them into a folder of their own."""

from __future__ import annotations

from pathlib import Path

ATTACK = '''
"""A corner of one colour."""

from dataclasses import dataclass

import torch

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.fixed import OverlayTrigger


@register("{name}")
@dataclass(frozen=True)
class Corner(DataPoisoning):
    """Paints a corner.

    Args:
        side: pixels.
    """

    side: int = 4

    def make_trigger(self, image_size, seed):
        weight = torch.zeros(1, image_size, image_size)
        weight[:, : self.side, : self.side] = {weight}
        return OverlayTrigger(image_size, weight, torch.ones(3, image_size, image_size))
'''

DEFENSE = '''
"""Scales the last layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution

from search_spaces.space import register as register_space
from trainables.defenses.base import Defense, NoData, Repair, register
from trainables.training.loop import Counters


@register("{name}")
@dataclass(frozen=True)
class Scaled(Defense):
    """Scales the weights of the last layer.

    Args:
        factor: that they are multiplied with.
    """

    owns: ClassVar[type[NoData]] = NoData

    factor: float = 0.5

    def __post_init__(self):
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1], got {{self.factor}}")

    def repair(self, model, assets, trainer):
        with torch.no_grad():
            model.classifier.weight.mul_(self.factor)
        {repair}

    def plan(self, n_owned, n_validation=0):
        return Counters()


@register_space("{name}")
class Space:
    SPACE = {{"factor": FloatDistribution({low}, 1.0)}}
    PAPER = {paper}
'''

MODEL = '''
"""Three layers."""

from torch import nn

from trainables.models.build import register
from trainables.models.classifier import Classifier


@register("{name}", "three small convolutions", default_width=8)
def three(num_classes, width, mean, std):
    stages, channels = [], 3
    for _ in range(3):
        block = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.{act}())
        stages.append(nn.Sequential(block))
        channels = width
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(width, num_classes), mean, std)
'''

DATA = '''
"""Bright and dark squares."""

import torch

from trainables.data.images import ImageSet
from trainables.data.sources.base import Raw, Source, register


def _read(size, root, download):
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (120, 80):
        labels = torch.arange(count) % 4
        images = torch.randint(0, 40, (count, 3, size, size), generator=generator)
        images += 50 * labels[:, None, None, None]
        parts.append(ImageSet(images.to(torch.uint8), labels + {first}))
    return Raw(*parts, ("a", "b", "c", "d"))


SQUARES = register(
    "{name}",
    Source("squares of four greys", 16, 4, flip=False, mean=None, std=None, read=_read, width=4, recipe="quick"),
)
'''

SAMPLER = '''
"""Whatever Optuna draws at random, under another name."""

from study.spec.samplers import register


@register("{name}", "draws")
def draws(*, seed, startup_trials):
    from optuna.samplers import {sampler}

    return {sampler}(seed=seed)
'''


def attack(name: str, weight: str = "1.0") -> str:
    """An attack called ``name``; other weights make another trigger of the same settings."""
    return ATTACK.format(name=name, weight=weight)


def defense(name: str, repair: str = "return Repair(model)", low: str = "0.1", paper: str = '{"factor": 0.5}') -> str:
    """A defense and its space; ``repair`` is how its method ends."""
    return DEFENSE.format(name=name, repair=repair, low=low, paper=paper)


def model(name: str, act: str = "ReLU") -> str:
    """A model whose width can be set."""
    return MODEL.format(name=name, act=act)


def data(name: str, first: int = 0) -> str:
    """A data set of four classes whose labels begin at ``first``."""
    return DATA.format(name=name, first=first)


def sampler(name: str, sampler: str = "RandomSampler") -> str:
    """One of Optuna's samplers as it is."""
    return SAMPLER.format(name=name, sampler=sampler)


def put(folder: Path, name: str, text: str) -> str:
    """Write ``name`` (with folders) and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)
