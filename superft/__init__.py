"""superft in Python: studies run, read, drawn and put into a paper.

```python
import superft

study = superft.run("quickstart")            # or superft.load("runs/quickstart")
study.trials                                 # one row per trial, a pandas table
study.front()                                # the settings that no other beats in both ASR and clean accuracy
study.plot("badnets")                        # the picture of the report, a Plotly figure
print(study.to_latex())                      # the table of the report for a paper
row = superft.trial("badnets", "super_ft", "digits", settings={"lr_max1": 0.3})
```

Importing it takes milliseconds: PyTorch, Ray and pandas are imported by the first call that needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superft.studies import Study


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
