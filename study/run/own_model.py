"""`superft repair`: weights of a stranger's file, the user's own clean images, a defense or a rule that chooses one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from study.run.one_trial import pick_device
from study.run.own_choice import Chosen, chooser, make_rule
from study.run.written import check_place, write_with_card
from study.spec.methods import published_settings
from study.spec.yaml_io import SpecError, merge_assignments
from trainables.defenses.base import DEFENSES, Defense
from trainables.foreign.adapter import unwrapped
from trainables.foreign.architectures import PLAIN, Architecture, architecture, classes_in
from trainables.foreign.images import class_names, from_folder, from_npz, three_numbers
from trainables.foreign.onnx_file import check_onnx, write_onnx
from trainables.foreign.repair import DEFAULT_DEFENSE, Repaired, repair_model
from trainables.foreign.weights import Fit, WeightsFile, fit_weights, read_weights
from trainables.models.build import ModelError
from trainables.plugins.load import load, load_installed


@dataclass(frozen=True)
class Request:
    """What was asked for; every field is an option of ``superft repair``."""

    weights: Path
    arch: str
    defense: str | None
    out: Path
    choose: str | None = None
    trials: int | None = None
    ledgers: Sequence[Path] = ()
    data: Path | None = None
    images: Path | None = None
    size: int | None = None
    mean: str | None = None
    std: str | None = None
    classes: str | None = None
    width: int | None = None
    key: str | None = None
    assignments: Sequence[str] = ()
    seed: int = 0
    flip: bool = True
    device: str | None = None
    neural_cleanse: bool = False
    accept: bool = False
    overwrite: bool = False
    export: str | None = None
    plugins: Sequence[str] = field(default_factory=tuple)


def repair_file(request: Request, say: Callable[[str], None] | None = None) -> tuple[Repaired, dict[str, Any]]:
    """Repair what lies in a file and write it with a card beside it: the result, and the card.

    Raises:
        SpecError, SettingError, DataError, ModelError: bad input, before any work and with nothing written.
        DivergedError: the repair left the finite numbers; nothing is written.
        NothingSafeError: the rule chose nothing; nothing is written but what it tried.
        StudyStoppedError: a trial of the rule failed; the same call goes on.
    """
    load_installed()
    load(request.plugins)
    graph = None if request.export is None else request.out.with_suffix(f".{request.export}")
    if graph is not None:
        check_onnx("--export onnx")
    check_place(request.out, request.overwrite, beside=() if graph is None else (graph,))
    if request.out.resolve() == request.weights.expanduser().resolve():
        raise SpecError(f"--out {request.out}: is the file of --weights itself; choose another name")
    if (request.data is None) == (request.images is None):
        raise SpecError("give the clean images either with --data DIR or with --images FILE.npz")
    rule, defense = None, None
    if request.choose is not None:
        rule = make_rule(_asked(request))
    elif request.trials is not None or request.ledgers:
        raise SpecError("--trials and --ledger belong to --choose RULE; superft list rules")
    else:
        defense = make_defense(request.defense or DEFAULT_DEFENSE, request.assignments)
    device = pick_device(request.device)
    names = None if request.classes is None else class_names(request.classes)
    arch = architecture(request.arch, request.width)
    mean, std = _normalization(request, arch)
    file = read_weights(request.weights)
    model, fit = model_in(file, arch, None if names is None else len(names), request.key)
    if request.images is not None:
        clean = from_npz(request.images, request.size, names)
    else:
        assert request.data is not None
        clean = from_folder(request.data, request.size, names)
    num_classes = _outputs(fit, model)
    if graph is not None:  # what cannot be exported is told before the work, on the model as it is
        with tempfile.TemporaryDirectory() as scratch:
            write_onnx(unwrapped(model), Path(scratch) / graph.name, clean.images.image_size)
    with contextlib.ExitStack() as stack:
        if rule is not None:
            folder = rows_folder(request.out)
            choice = stack.enter_context(chooser(rule, request.trials, device, folder, say))
        result = repair_model(
            model,
            clean,
            choice if defense is None else defense,
            mean=mean,
            std=std,
            seed=request.seed,
            flip=request.flip,
            device=device,
            build=lambda generator: arch.build(num_classes, generator),
            neural_cleanse=request.neural_cleanse,
            accept=request.accept,
            say=say,
        )
    state, card = fit.with_values(result.model.state_dict()), _card(result, fit, file, request)
    if graph is not None:
        try:
            card["onnx"] = write_onnx(result.model, graph, clean.images.image_size)
        except ModelError as error:  # it could be written before the repair, whose weights must not be lost for it
            card["onnx"] = {"file": None, "error": str(error)}
        except OSError as error:
            raise SpecError(f"--out {request.out}: {graph} cannot be written ({error.strerror or error})") from error
    return result, write_with_card(state, request.out, card)


def rows_folder(out: Path) -> Path:
    """Where the rows of what a rule tried lie: beside the weights, ``NAME.tried``."""
    return out.with_suffix(".tried")


def _asked(request: Request) -> Chosen:
    strange = [item for item in request.assignments if not item.startswith("rule.")]
    if strange:
        raise SpecError(f"--set {strange[0]}: --choose decides the defense's settings; a rule's own are rule.KEY=VALUE")
    settings = merge_assignments({}, [item.removeprefix("rule.") for item in request.assignments])
    return Chosen(request.choose or "", request.trials, request.ledgers, settings, request.defense)


def make_defense(name: str, assignments: Sequence[str]) -> Defense:
    """The defense at its published point, with ``key=value`` over it (SpecError, SettingError)."""
    published = published_settings(name, "") if name in DEFENSES else {}
    prefix = f"defense.{name}."
    return DEFENSES.create(name, merge_assignments(published, [item.removeprefix(prefix) for item in assignments]))


def model_in(file: WeightsFile, arch: Architecture, classes: int | None, key: str | None) -> tuple[nn.Module, Fit]:
    """A model of the architecture with the weights of a file.

    Args:
        classes: outputs, where the user says how many; else they are counted in the file.
        key: which of several state dicts.

    Raises:
        ModelError: they do not fit.
    """
    model = arch.build(classes)
    if classes is None and (found := classes_in(file.states, model)) is not None:
        model = arch.build(found)
    fit = fit_weights(file, model.state_dict(), called=arch.name, key=key)
    values = fit.values()
    complete = {**model.state_dict(), **values}
    kinds = {value.dtype for value in values.values() if value.is_floating_point()}
    if len(kinds) == 1:  # half precision throughout, for one: the model is what the file is
        model = model.to(kinds.pop())
    model.load_state_dict(complete)
    return model.eval(), fit


def _outputs(fit: Fit, model: nn.Module) -> int | None:
    return classes_in({"": fit.values()}, model)


def _card(result: Repaired, fit: Fit, file: WeightsFile, request: Request) -> dict[str, Any]:
    return {
        "what": "a model repaired by superft",
        "from": {"file": file.path.name, "sha256": file.sha256, "state_dict": fit.label},
        "arch": request.arch,
        **result.report,
    }


def _normalization(request: Request, arch: Architecture) -> tuple[Sequence[float], Sequence[float]]:
    if arch.normalization is None and (request.mean or request.std):
        raise SpecError(f"--mean, --std: {arch.name} normalises its images itself, as its weights say; leave them out")
    if (request.mean is None) != (request.std is None):
        raise SpecError("--mean and --std belong together; give both")
    if request.mean is None or request.std is None:
        return arch.normalization or PLAIN
    return three_numbers(request.mean, "--mean"), three_numbers(request.std, "--std")
