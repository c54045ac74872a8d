"""superft in Python: studies run, read, drawn and put into a paper.

```python
import superft

study = superft.run("quickstart")            # or superft.load("runs/quickstart")
study.trials                                 # one row per trial, a pandas table
study.front()                                # the settings that no other beats in both ASR and clean accuracy
study.plot("badnets")                        # the picture of the report, a Plotly figure
print(study.to_latex())                      # the table of the report for a paper
row = superft.trial("badnets", "super_ft", "digits", settings={"lr_max1": 0.3})
repaired = superft.repair(model, images, labels)      # your own torch.nn.Module and your own clean images
```

Importing it takes milliseconds: PyTorch, Ray and pandas are imported by the first call that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from superft.studies import Study
    from trainables.foreign.repair import Repaired


def load(place: str | Path) -> Study:
    """The study in a folder or at a URI, as it is now; it may be running.

    Raises:
        SpecError: no study is there, or a later version of superft wrote it.
    """
    from superft.studies import load_study

    return load_study(place)


def run(
    spec: str | Path | Mapping[str, Any] = "quickstart",
    out: str | Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    address: str | None = None,
) -> Study:
    """Run a study or continue it, as ``superft run`` does, and load it. Ctrl-C stops in order and raises.

    Args:
        spec: name of a recipe, path of a YAML file, or the keys of a spec.
        out: folder or URI; default ``runs/NAME``.
        changes: dotted keys over the spec: ``{"search.trials": 64}``.
        address: of a Ray cluster; None starts Ray on this machine for the time of the study.

    Raises:
        SpecError, SettingError, DataError: bad input, before any work.
        StudyStoppedError: the folder, the database or the store failed; the same call continues.
        KeyboardInterrupt: stopped; the same call continues.
    """
    from superft.studies import run_and_load

    return run_and_load(spec, out, changes or {}, address)


def trial(
    attack: str,
    defense: str,
    dataset: str,
    *,
    model: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """One attack + defense combination in this process, without Ray: the row of the ledger.

    Args:
        attack, defense, dataset, model: registered names; ``folder:PATH`` for your own images.
        seed: of the victim.
        settings: of the defense, over its published point: ``{"lr_max1": 0.3}``.
        changes: dotted keys of the spec: ``{"victim.epochs": 5, "attack.badnets.size": 4}``.
        store: of victims; default SUPERFT_STORE or the user's cache folder.
        device: ``cpu``, ``cuda``, ...; default CUDA where there is one.

    Raises:
        SpecError, SettingError, DataError: bad input, before any work.
    """
    from superft.studies import one_trial

    given = {f"defense.{defense}.{key}": value for key, value in (settings or {}).items()} | dict(changes or {})
    return one_trial(attack, defense, dataset, model, seed, given, store, device)


def repair(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Sequence[str] | None = None,
    defense: str | None = None,
    settings: Mapping[str, Any] | None = None,
    choose: str | None = None,
    trials: int | None = None,
    ledgers: Sequence[Path | str] = (),
    seed: int = 0,
    flip: bool = True,
    device: str | None = None,
    build: Callable[[], nn.Module] | None = None,
    neural_cleanse: bool = False,
    accept: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Repaired:
    """Repair a copy of your own model with your own clean images; nothing is written, the model stays as it is.

    Args:
        model: any image classifier: from normalised images (N, 3, S, S) to logits (N, K).
        images: clean, uint8 (or floats in [0, 1]), (N, 3, S, S) or (N, S, S, 3), before normalisation. A fifth is held
            out: the repair never sees it.
        labels: positions of the model's outputs, (N,).
        mean, std: what the model's images are normalised with, per channel in units of [0, 1] pixels.
        classes: names of the outputs.
        defense: default super-fine-tuning.
        settings: of the defense, over its published point; with ``choose`` of the rule.
        choose: a rule that chooses defense and settings without an ASR, such as ``planted`` (`superft list rules`);
            what it tries runs on Ray.
        trials: candidates that the rule tries; default those that are known.
        ledgers: folders of studies of other attacks, for ``choose="transfer"``.
        seed: of the split and of all that is drawn.
        flip: whether a mirrored image keeps its label.
        device: ``cpu``, ``cuda``, ...; default CUDA where there is one.
        build: makes a new model with random weights, for a defense that begins anew (``scratch``).
        neural_cleanse: seek a trigger for every class before and after; slow.
        accept: repair also a model that is hardly right on these images.
        progress: gets a line now and then, such as ``print``.

    Returns:
        ``.model`` (yours, with repaired weights of their old types, on the CPU), ``.report`` (a dictionary), and text.

    Raises:
        ModelError, DataError, SettingError, SpecError: bad input, before any work.
        DivergedError: the training left the finite numbers.
        NothingSafeError: the rule found nothing that it would answer for.
    """
    from superft.own_models import repair_own

    return repair_own(
        model,
        images,
        labels,
        classes,
        defense,
        settings or {},
        None if choose is None else (choose, trials, [Path(item) for item in ledgers]),
        device,
        build,
        mean=mean,
        std=std,
        seed=seed,
        flip=flip,
        neural_cleanse=neural_cleanse,
        accept=accept,
        say=progress,
    )
