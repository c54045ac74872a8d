"""`superft export`: the repaired model of a study's trial, kept by the study or made again, held against its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from study.record.columns import to_frame
from study.results.fronts import fronts
from study.results.pareto import PICKS
from study.results.rows import ALL_ATTACKS
from study.run.kept_models import KeptModelError, TrialModel, read_kept
from study.run.repeat import Found, differences, find_trial, read_study, run_again
from study.run.written import ENDINGS, check_place, write_card, write_with_card
from study.spec.yaml_io import SpecError
from trainables.foreign.onnx_file import check_onnx, write_onnx
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.storage.remote import Place

KNEE = "knee"
CHOICES = (KNEE, *PICKS)
ONNX = "onnx"  # a format, and its ending
RATES = {"asr": "n_triggered", "clean_accuracy": "n_clean", "robust_accuracy": "n_triggered"}
# As far as a rate may move between two kinds of processor or cards: a model that moved further is another one.
SLACK_IMAGES, SLACK_SHARE = 3, 0.01


def export_trial(
    study: Place,
    out: Path,
    *,
    trial: str | None = None,
    pick: str | None = None,
    attack: str | None = None,
    defense: str | None = None,
    seed: int | None = None,
    store: Place | None = None,
    device: str | None = None,
    overwrite: bool = False,
    form: str = "weights",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the model of a trial, as its weights or as an ONNX graph, with a card beside it; the card.

    The file that the study kept is taken, if it is what the row says. Else the trial is run again.

    Args:
        study: its folder or URI.
        out: the file.
        trial: id of the setting; or
        pick: ``knee``, ``drop_1``, ...: that member of the front.
        attack, defense, seed: which front, and which of the setting's cells, where there are several.
        store: of victims and kept models, where it is not the study's.
        device: as in `run_again`.
        overwrite: whether files that are there may be replaced.
        form: ``weights`` or ``onnx``.
        say: is told of a kept file that cannot be taken.

    Raises:
        SpecError: no such trial or pick, several to choose from, nothing can be written there, or the model that was
            made again does not measure as the row says.
    """
    if form == ONNX:
        check_onnx(f"--format {ONNX}")
    check_place(out, overwrite, (f".{ONNX}",) if form == ONNX else ENDINGS)
    if (trial is None) == (pick is None):
        raise SpecError("name the trial either with --trial ID or with --pick, one of " + ", ".join(CHOICES))
    if pick is not None:
        trial = picked(study, pick, attack, defense)
    assert trial is not None
    cell = None if attack == ALL_ATTACKS else attack
    found = find_trial(study, trial, attack=cell, seed=seed, option="--trial")
    try:
        model = None if found.row.get("kept") is None else read_kept(found, store)
    except KeptModelError as error:
        model = None
        if say is not None:
            say(f"{error}; the trial is run again")
    if model is None:
        model = _made_again(found, store, device)
    row = found.row
    card = {
        "what": "the model of a superft trial",
        "study": row["study"],
        "trial": trial,
        "pick": pick,
        "arch": row["model"],
        "width": row["width"],
        "num_classes": model.num_classes,
        "row": {name: value for name, value in row.items() if value is not None},
        "kept": model.kept,
        "checked": {"equal": not model.moved, "differs": {name: list(two) for name, two in model.moved.items()}},
        "versions": model.versions,
        "code": model.code,
    }
    return _write_graph(model, out, card) if form == ONNX else write_with_card(model.state, out, card)


def _write_graph(model: TrialModel, out: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write the model as a graph that takes images in [0, 1], since a model of ours normalises them itself."""
    row = card["row"]
    size = {"width": row.get("width"), "image_size": row["image_size"]}
    built = build_model(row["model"], num_classes=model.num_classes, **size)
    built.load_state_dict(dict(model.state))
    try:
        told = write_onnx(built, out, row["image_size"])
        return write_card(out, told["sha256"], {**card, "onnx": told})
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _made_again(found: Found, store: Place | None, device: str | None) -> TrialModel:
    """The model of the trial, run again (SpecError: it has none, or measures otherwise than the row says)."""
    made: list[Classifier] = []
    now = run_again(found, store=store, device=device, option="--trial", keep=made.append, again=False)
    trial, then = found.row["trial"], found.row
    if not made:
        raise SpecError(f"--trial {trial}: ended as {now['status']}, there is no model ({now['error']})")
    _refuse_another(trial, now, then)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in made[0].state_dict().items()}
    return TrialModel(state, made[0].num_classes, now["versions"], now["code"], None, differences(now, then))


def picked(study: Place, pick: str, attack: str | None = None, defense: str | None = None) -> str:
    """Id of the trial that a front's pick is.

    Raises:
        SpecError: no such pick, or several fronts have one.
    """
    if pick not in CHOICES:
        raise SpecError(f"--pick {pick!r}: must be one of {', '.join(CHOICES)}")
    _, rows = read_study(study)
    members: pd.DataFrame = fronts(to_frame(rows))
    labels = members["picks"].str.split(";").map(lambda names: pick in names)
    members = members[members["is_knee"].astype(bool) if pick == KNEE else labels.astype(bool)]
    for column, wanted in (("attack", attack), ("defense_label", defense)):
        if wanted is not None:
            members = members[members[column] == wanted]
    found = sorted(set(members["trial"]))
    if len(found) == 1:
        return str(found[0])
    if not found:
        raise SpecError(f"--pick {pick}: no front of {study} has one; superft front {study} shows what there is")
    which = "; ".join(
        f"--attack {row['attack']} --defense {row['defense_label']} ({row['trial']})" for _, row in members.iterrows()
    )
    raise SpecError(f"--pick {pick}: {len(found)} fronts of {study} have one; choose: {which}")


def _refuse_another(trial: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Refuse a model whose status or rates are not those of the row, beyond another machine's rounding."""
    apart = []
    if now["status"] != then["status"]:
        apart.append(f"status {then['status']}, now {now['status']}")
    for rate, count in RATES.items():
        if then.get(rate) is None or now.get(rate) is None:
            continue
        n = now[count]
        if round(abs(now[rate] - then[rate]) * n) > max(SLACK_IMAGES, SLACK_SHARE * n):
            apart.append(f"{rate} {then[rate]:.4f}, now {now[rate]:.4f}")
    if apart:
        raise SpecError(
            f"--trial {trial}: made again, it does not measure as its row says ({'; '.join(apart)}); the row was made "
            f"on {then.get('device')} by {then.get('code')}; nothing was written"
        )
