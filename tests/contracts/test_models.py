"""Every registered model under the shipped suite, and wrong models that it must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from superft.testing import model_checks
from superft.testing.model_checks import CLASSES, Subject
from superft.testing.models import CHECKS
from tests.contracts.wrong import complaint, named
from trainables.models.classifier import Classifier

Check = Callable[[Subject], None]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


@pytest.mark.parametrize("subject", model_checks.names(), indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_model(subject: Subject, check: Check) -> None:
    check(subject)


def small(*stages: nn.Module, neck: nn.Module | None = None, head: nn.Linear | None = None) -> Classifier:
    """Stages of 4 channels under a plain head; one convolution stands before those that are given."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    neck = neck or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier([nn.Sequential(stem), *stages], neck, head or nn.Linear(4, CLASSES), (0.0,) * 3, (1.0,) * 3)


@dataclass
class Made(Subject):
    """A model that is built by a function rather than by its name."""

    make: Callable[[], Classifier] = small

    def build(self, seed: int = 0, *, width: int | None = None, image_size: int | None = None) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()


class Noise(nn.Module):
    """Draws from the global generator in every mode."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + torch.rand(())


class Remembers(nn.Module):
    """Keeps what it needs outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = float(torch.rand(()))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.factor


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.rand(3))

    def forward(self, maps: Tensor) -> Tensor:
        return maps


class HalfPrecision(Classifier):
    def logits(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(features)
        return scores


def half() -> Classifier:
    made = small()
    return HalfPrecision(made.stages, made.neck, made.classifier, (0.0,) * 3, (1.0,) * 3)


def fixed() -> Classifier:
    made = small()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.5)
    return made


WRONG: dict[str, tuple[Callable[[], Classifier], str, str]] = {
    "grows": (
        lambda: small(nn.Upsample(scale_factor=2)),
        "stages_map_maps_to_maps_that_never_grow",
        "stage 1 makes its maps larger",
    ),
    "vectors": (
        lambda: small(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), neck=nn.Identity()),
        "stages_map_maps_to_maps_that_never_grow",
        "stage 1 must give maps (N, C, H, W), got shape (2, 4)",
    ),
    "linear neck": (
        lambda: small(neck=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))),
        "stages_neck_and_head_are_the_whole_model",
        "the neck has a linear layer",
    ),
    "in place": (
        lambda: small(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.ReLU(inplace=True)),
        "no_stage_overwrites_what_it_received",
        "stage 2 overwrites its input in place",
    ),
    "noise": (
        lambda: small(Noise()),
        "training_draws_nothing_from_the_global_generator",
        "draws from the global generator",
    ),
    "noise in eval mode": (
        lambda: small(Noise()),
        "eval_mode_is_deterministic_and_treats_images_one_by_one",
        "eval mode is not deterministic",
    ),
    "remembers": (
        lambda: small(Remembers()),
        "a_state_dict_brings_everything_back",
        "is no parameter or buffer",
    ),
    "idle": (lambda: small(Idle()), "every_parameter_learns", "stages.1.unused gets no gradient"),
    "empty last block": (lambda: small(nn.Sequential(nn.ReLU())), "last_block_is_the_end", "last_block has no"),
    "bfloat16 logits": (half, "logits_are_float32_per_class", "logits must be float32 under autocast"),
    "same for every seed": (
        fixed,
        "initial_weights_come_from_the_generator_alone",
        "is the same for every seed",
    ),
    "any size": (
        lambda: small(nn.Sequential(nn.Conv2d(4, 4, 3))),
        "works_at_its_smallest_image_size_and_refuses_smaller",
        "is built for images of one pixel",
    ),
    "takes any width": (small, "width_scales_the_parameters", "takes width=8 without a word"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_model_is_caught_and_what_is_wrong_is_named(wrong: str) -> None:
    make, check, message = WRONG[wrong]
    name = next(item.__name__ for item in CHECKS if item.__name__.startswith(check))
    assert message in complaint(named(CHECKS, name), Made("wrong", make=make))


def test_a_sound_model_passes_all_that_is_not_about_its_registration() -> None:
    about_registration = {
        "normalisation_is_inside",
        "width_scales_the_parameters",
        "works_at_its_smallest_image_size_and_refuses_smaller",
    }
    for check in CHECKS:
        if check.__name__ not in about_registration:
            check(Made("sound"))
