"""Repair of a model that somebody brings, with that person's own clean images, and what can be said of the result."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.choice.base import Choice, NothingSafeError, Suspect
from trainables.data.images import DataError
from trainables.defenses.base import DEFENSES, CleanData, Defense, NoData, PoisonedData, Repair
from trainables.defenses.carry_out import carry_out
from trainables.defenses.nc import NeuralCleanse
from trainables.defenses.super_ft import SuperFineTuning
from trainables.defenses.trigger_inversion import anomaly_indices, flagged, invert_triggers
from trainables.evaluation.conditions import why_collapsed
from trainables.foreign.adapter import ForeignClassifier, adapt, unwrapped
from trainables.foreign.findings import UNKNOWN, chosen, json_able, measured, moved, warnings_of
from trainables.foreign.images import CleanImages, Parts, split
from trainables.foreign.progress import told, work_of
from trainables.foreign.weights import refuse_unusable
from trainables.machine.device import best_device
from trainables.machine.provenance import code, describe_device, versions
from trainables.models.classifier import Classifier, Normalize
from trainables.models.parts import refuse_lacking
from trainables.seeding import derive_seed
from trainables.training.arithmetic import arithmetic
from trainables.training.loop import Counters, DivergedError
from trainables.training.movement import Snapshot, movement
from trainables.training.predict import predict
from trainables.training.trainer import Trainer

DEFAULT_DEFENSE = SuperFineTuning.name

Channels = tuple[float, float, float]

# What people normalise with who say nothing: asked only to tell a wrong guess from a bad model.
NORMALIZATIONS: Mapping[str, tuple[Channels, Channels]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # standard deviation over all pixels
    "to [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
ASKED = 512  # images on which they are compared
# Of ten classes, ten points are more than the chance of a wrong normalisation on so many images.
CLEARLY = 0.1


@dataclass(frozen=True)
class Repaired:
    """A repaired model.

    Args:
        model: as it was given, with repaired weights of their old types; in eval mode, on the CPU.
        report: what was measured and how, JSON-able; see docs/own_models.md.
    """

    model: nn.Module
    report: dict[str, Any]

    def __str__(self) -> str:
        from trainables.foreign.words import describe

        return describe(self.report)


Choose = Callable[[Suspect], Choice]


def repair_model(
    model: nn.Module,
    clean: CleanImages,
    defense: Defense | Choose,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    flip: bool = True,
    device: torch.device | None = None,
    precision: str = "auto",
    build: Callable[[torch.Generator], nn.Module] | None = None,
    neural_cleanse: bool = False,
    accept: bool = False,
    say: Callable[[str], None] | None = None,
) -> Repaired:
    """Repair a copy of ``model``; the model itself stays as it is.

    Args:
        model: takes normalised images (N, 3, S, S), gives logits (N, K).
        clean: images of all K classes, S pixels a side.
        defense: with its settings; or what chooses one, given the model and the images that a repair may see.
        mean, std: what the model's images are normalised with, per channel in units of [0, 1] pixels.
        seed: of the split of the images and of all that the defense draws.
        flip: whether a mirrored image keeps its label; training then mirrors half of them.
        device: default: CUDA where there is one.
        precision: of the arithmetic, see `training.loop.autocast`.
        build: makes a new model with random weights, for a defense that begins anew.
        neural_cleanse: seek a trigger for every class before and after, which takes far longer than the repair.
        accept: repair also a model that is hardly right on these images.
        say: gets a line of progress now and then.

    Raises:
        ModelError, DataError: model, images and defense do not fit each other; before any work.
        DivergedError: the training left the finite numbers.
        NothingSafeError: what chooses found nothing that it would answer for.
    """
    device = best_device() if device is None else device
    plain = unwrapped(model)
    refuse_unusable(plain.state_dict(), "the model")
    if isinstance(defense, Defense):
        _refuse_poisoned(defense)
    types = {name: value.dtype for name, value in plain.state_dict().items()}
    size = clean.images.image_size
    working = copy.deepcopy(plain).cpu().float().requires_grad_(True)
    old, lacking = adapt(working.to(device), image_size=size, mean=mean, std=std)
    if build is None:
        lacking["new_model"] = "how to make one is not known here"
    if isinstance(defense, Defense):
        refuse_lacking(defense.name, defense.needs(), lacking)
    parts = split(clean, old.num_classes, seed)
    if isinstance(defense, Defense):
        defense.check(old, len(parts.train), len(parts.validation), size)
    seeker = NeuralCleanse()
    if neural_cleanse:
        seeker.check(old, len(parts.train), len(parts.validation), size)

    trainer = Trainer(
        device=device,
        seed=derive_seed(seed, "repair"),
        num_classes=old.num_classes,
        flip=flip,
        padding=min(4, size // 8),
        new_model=lambda generator: _fresh(build, generator, size, mean, std),
        precision=precision,
    )
    held_out = parts.held_out.to(device)
    before = predict(old, held_out.images, precision=precision).cpu()
    if not accept:
        _refuse_strangers(old, parts, before, device, precision, mean, std)
    choice, chosen_in = None, 0.0
    if not isinstance(defense, Defense):
        began = time.perf_counter()
        choice = defense(Suspect(old, _owned(parts, trainer), trainer))
        chosen_in = time.perf_counter() - began
        if choice.candidate is None:
            raise NothingSafeError(choice)
        defense = DEFENSES.create(choice.candidate.defense, choice.candidate.settings)
        _refuse_poisoned(defense)
        refuse_lacking(defense.name, defense.needs(), lacking)
        defense.check(old, len(parts.train), len(parts.validation), size)
    planned = defense.plan_for(old.num_classes, len(parts.train), len(parts.validation))
    flags: dict[str, Any] = {"ran": False, "samples": 2 * work_of(_inversion_work(seeker, old, parts))}
    flags["times_the_repair"] = round(flags["samples"] / max(1, work_of(planned)), 1)
    if neural_cleanse:
        flags |= {"ran": True, "before": _flags(old, seeker, parts, trainer, say, "trigger search before")}

    if choice is not None and choice.attempt is not None and choice.attempt.repair is not None:
        # The very model that the rule looked at: another run, on other threads, may end elsewhere.
        repair, work, seconds = choice.attempt.repair, choice.attempt.work, choice.attempt.seconds
        repair.model.to(device)
    else:
        started = time.perf_counter()
        repair, work = _repaired(old, defense, parts, trainer, planned, say)
        seconds = time.perf_counter() - started
    after = predict(repair.model, held_out.images, precision=precision).cpu()
    if neural_cleanse:
        flags["after"] = _flags(repair.model, seeker, parts, trainer, say, "trigger search after")

    result = _with_state(plain, _inner(repair.model).state_dict(), types)
    facts = {
        "status": repair.status,
        "defense": defense.name,
        "settings": dataclasses.asdict(defense),
        "choice": None if choice is None else chosen(choice, chosen_in),
        "seed": seed,
        "images": {
            "origin": clean.origin,
            "sha256": clean.fingerprint,
            "train": len(parts.train),
            "validation": len(parts.validation),
            "held_out": len(parts.held_out),
            "size": size,
            "classes": list(clean.classes),
            "flip": flip,
        },
        **_normalization(old),
        **measured(parts.held_out.labels.cpu(), before, after),
        **moved(
            movement(
                Snapshot.of(_inner(old)), _inner(repair.model), repair.history.loss, plain_loss=defense.plain_loss
            ),
            repair.history,
        ),
        "neural_cleanse": flags,
        "notes": json_able(repair.notes),
        "work": dataclasses.asdict(work),
        "seconds": round(seconds, 2),
        "device": describe_device(device),
        "arithmetic": arithmetic(device, precision),
        "versions": versions(),
        "code": code(),
        "unknown": list(UNKNOWN),
    }
    return Repaired(result, facts | {"warnings": warnings_of(facts)})


def _fresh(
    build: Callable[[torch.Generator], nn.Module] | None,
    generator: torch.Generator,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    assert build is not None, "a defense that asked for a new model was refused"
    return adapt(build(generator), image_size=size, mean=mean, std=std)[0]


def _inner(model: Classifier) -> nn.Module:
    return model.inner if isinstance(model, ForeignClassifier) else model


def _repaired(
    old: Classifier,
    defense: Defense,
    parts: Parts,
    trainer: Trainer,
    planned: Counters,
    say: Callable[[str], None] | None,
) -> tuple[Repair, Counters]:
    """The repair of a copy, and the work that it took."""
    assets = NoData() if defense.owns is NoData else _owned(parts, trainer)
    start = dataclasses.replace(trainer.counters)
    with told(trainer.counters, planned, say):
        repair = carry_out(defense, old, assets, trainer)
    return repair, trainer.counters - start


def _refuse_poisoned(defense: Defense) -> None:
    if defense.owns is PoisonedData:
        raise DataError(
            f"defense {defense.name} needs the training set with the poison in it, and here are clean images alone; "
            "use a defense that works with clean images"
        )


def _owned(parts: Parts, trainer: Trainer) -> CleanData:
    """What a repair may see: not what is held out."""
    return CleanData(parts.train.to(trainer.device), parts.validation.to(trainer.device))


def _refuse_strangers(
    model: Classifier,
    parts: Parts,
    predictions: Tensor,
    device: torch.device,
    precision: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Refuse images that the model hardly knows: another normalisation, size or order of classes, or other weights."""
    labels = parts.held_out.labels.cpu()
    accuracy = float((predictions == labels).double().mean())
    # Evenly over all, for images of a folder come class by class.
    asked = torch.linspace(0, len(parts.train) - 1, min(ASKED, len(parts.train))).long()
    images = parts.train.subset(asked).to(device)
    counts = torch.bincount(labels)
    if isinstance(model, ForeignClassifier):
        here = float((predict(model, images.images, precision=precision) == images.labels).double().mean())
        best, name = here, ""
        given, kept = (tuple(mean), tuple(std)), model.normalize
        for called, (other_mean, other_std) in NORMALIZATIONS.items():
            if (other_mean, other_std) == given:
                continue
            model.normalize = Normalize(other_mean, other_std).to(device)
            try:
                reached = float((predict(model, images.images, precision=precision) == images.labels).double().mean())
            except DivergedError:
                reached = 0.0
            if reached > best:
                best, name = reached, called
        model.normalize = kept
        if best > here + CLEARLY:
            other_mean, other_std = NORMALIZATIONS[name]
            raise DataError(
                f"the model is right on {here:.0%} of {len(images)} images with mean {_numbers(mean)} and std "
                f"{_numbers(std)}, and on {best:.0%} with those of {name}: give --mean {_numbers(other_mean)} --std "
                f"{_numbers(other_std)}, or --accept to repair it as it is"
            )
    why = why_collapsed(accuracy, int(counts.max()) / len(labels), len(predictions.unique()), int((counts > 0).sum()))
    if why is not None:
        raise DataError(
            f"the model is right on {accuracy:.0%} of {len(labels)} held-out images, hardly more than by guessing: "
            "--classes (the order of its outputs), --size, --mean and --std, or the weights are not those of these "
            "images; --accept repairs it all the same"
        )


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _normalization(model: Classifier) -> dict[str, list[float]]:
    return {
        "mean": [round(float(value), 6) for value in model.normalize.mean.flatten()],
        "std": [round(float(value), 6) for value in model.normalize.std.flatten()],
    }


def _with_state(plain: nn.Module, state: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> nn.Module:
    """A copy of the user's model with other weights, each of its old type and in its old layout."""
    result = copy.deepcopy(plain).cpu()
    result.load_state_dict({name: state[name].detach().cpu().to(types[name]).contiguous() for name in state})
    return result.eval()


def _inversion_work(seeker: NeuralCleanse, model: Classifier, parts: Parts) -> Counters:
    stamped = model.num_classes * seeker.inversion(len(parts.train)).epochs * len(parts.train)
    return Counters(forward_samples=stamped, input_backward_samples=stamped)


def _flags(
    model: Classifier,
    seeker: NeuralCleanse,
    parts: Parts,
    trainer: Trainer,
    say: Callable[[str], None] | None,
    what: str,
) -> dict[str, Any]:
    """Classes that Neural Cleanse flags, at its published settings."""
    images = parts.train.images.to(trainer.device)
    with told(trainer.counters, _inversion_work(seeker, model, parts), say, what=what):
        found = invert_triggers(model, images, trainer, seeker.inversion(len(images)), range(model.num_classes))
    norms = [float(norm) for norm in found.norms]
    return {
        "flagged_classes": list(flagged(norms, seeker.mad_threshold)),
        "mask_norms": [round(norm, 3) for norm in norms],
        "anomaly_indices": [round(index, 3) for index in anomaly_indices(norms)],
    }
