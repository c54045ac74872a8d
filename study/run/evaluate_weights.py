"""`superft evaluate`: any weights, measured with the stored trigger and test set of a victim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.run.one_trial import pick_device
from study.run.own_model import model_in
from study.spec.yaml_io import SpecError
from trainables.data.images import Dataset, TriggeredSet
from trainables.data.load import load_dataset
from trainables.evaluation.metrics import evaluate, wilson
from trainables.foreign.adapter import adapt
from trainables.foreign.architectures import PLAIN, architecture
from trainables.foreign.images import three_numbers
from trainables.foreign.weights import read_weights
from trainables.models.classifier import Classifier
from trainables.plugins.load import load, load_installed
from trainables.registry import nearest
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store
from trainables.storage.store import META, Artifact, DamagedArtifactError, Store

RATES = ("asr", "clean_accuracy", "robust_accuracy")


def evaluate_file(
    weights: Path,
    victim: str,
    *,
    store: Place | None = None,
    arch: str | None = None,
    width: int | None = None,
    key: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    download: bool = False,
    device: str | None = None,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """Rates of the weights in a file on a victim's clean and triggered test images, beside the victim's own.

    Args:
        victim: its name in the store, or how it begins where no other does; column ``victim`` of a row.
        arch: default the victim's own, with its width.

    Raises:
        SpecError, DataError, ModelError: no such victim or data set, or weights that do not fit; before any work.
    """
    if arch is None and width is not None:
        raise SpecError("--width belongs to --arch: without it the model is the victim's own")
    load_installed()
    load(plugins)
    name, artifact = stored_victim(open_store(store), victim)
    spec, facts = artifact.facts["spec"], artifact.facts
    triggered = TriggeredSet(**artifact.tensors["triggered_test"])
    dataset = victim_dataset(name, artifact, int(triggered.images.shape[-1]), download)
    if arch is None:
        arch, width = spec["model"], spec["width"]
    built = architecture(arch, width)
    file = read_weights(weights)
    model, fit = model_in(file, built, None, key)
    normalization = built.normalization or PLAIN
    if mean is not None or std is not None:
        if mean is None or std is None:
            raise SpecError("--mean and --std belong together; give both")
        if isinstance(model, Classifier):
            raise SpecError("--mean and --std: a model of ours normalises its images itself; leave them out")
        normalization = (three_numbers(mean, "--mean"), three_numbers(std, "--std"))
    on = pick_device(device)
    classifier, _ = adapt(
        model.float().to(on), image_size=dataset.image_size, mean=normalization[0], std=normalization[1]
    )
    if classifier.num_classes != dataset.num_classes:
        raise SpecError(
            f"--weights {weights}: {classifier.num_classes} outputs, victim {name} has {dataset.num_classes} classes"
        )
    found = evaluate(classifier, dataset.test.to(on), triggered.to(on), precision=spec["precision"])
    counts = {"asr": found.full.n_triggered, "robust_accuracy": found.full.n_triggered}
    result: dict[str, Any] = {
        "weights": str(weights),
        "sha256": file.sha256,
        "state_dict": fit.label,
        "arch": arch,
        "victim": name,
        "attack": spec["attack"],
        "dataset": dataset.name,
        "n_clean": found.full.n_clean,
        "n_triggered": found.full.n_triggered,
        "collapsed": found.why_collapsed,
    }
    for rate in RATES:
        value, n = getattr(found.full, rate), counts.get(rate, found.full.n_clean)
        result[rate] = value
        result[f"{rate}_interval"] = [round(end, 4) for end in wilson(round(value * n), n)]
        result[f"{rate}_victim"] = facts["evaluation"]["full"][rate]
    return result


def stored_victim(store: Store, victim: str) -> tuple[str, Artifact]:
    """The victim of a store whose name is, or alone begins with, ``victim`` (SpecError)."""
    name = victim
    if not victim or "/" in victim or victim.startswith("."):
        raise SpecError(f"--victim {victim!r}: must be the name of a victim, as in the column victim of a study's rows")
    if isinstance(store.where, Path) and not store.holds(victim):
        known = sorted(path.parent.name for path in store.where.glob(f"*/{META}"))
        begins = [each for each in known if each.startswith(victim)]
        if len(begins) != 1:
            hint = f"several begin so: {', '.join(begins[:5])}" if begins else nearest(victim, known)
            raise SpecError(f"--victim {victim!r}: store {store.where} holds no such victim; {hint}")
        name = begins[0]
    try:
        artifact = store.load(name)
    except DamagedArtifactError as error:
        raise SpecError(f"--victim {name}: {error}") from error
    if artifact is None or "triggered_test" not in artifact.tensors:
        raise SpecError(f"--victim {name}: store {store.where} holds no such victim")
    return name, artifact


def victim_dataset(name: str, artifact: Artifact, image_size: int, download: bool) -> Dataset:
    """The data set that a victim was made on (SpecError: it is another one now)."""
    told = artifact.facts["dataset"]
    dataset = load_dataset(told["name"], image_size=image_size, download=download)
    if dataset.fingerprint != told["fingerprint"]:
        raise SpecError(
            f"--victim {name}: data set {told['name']} is not the one that it was trained on (its images were "
            "changed, or another version is installed)"
        )
    return dataset


def describe_evaluation(found: dict[str, Any]) -> str:
    """The rates for people."""
    lines = [f"{found['weights']} ({found['arch']}) against {found['victim']}"]
    for rate, label in zip(RATES, ("attack success rate", "clean accuracy", "robust accuracy"), strict=True):
        low, high = found[f"{rate}_interval"]
        lines.append(
            f"  {label:<20} {found[rate]:.4f} ({low:.3f} to {high:.3f}); the victim's {found[f'{rate}_victim']:.4f}"
        )
    if found["collapsed"]:
        lines.append(f"  warning: {found['collapsed']}")
    lines.append(
        f"  on {found['n_clean']} clean and {found['n_triggered']} triggered test images of {found['dataset']}"
    )
    return "\n".join(lines)
