"""Claims of `superft export` and `superft evaluate`: a trial's model is its row's, measured again from its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from study.plan.jobs import prepare
from study.record.ledger import Ledger
from study.run.one_trial import run_job
from tests.study.commands import assert_refused, invoke
from tests.study.rows import make_row
from tests.study.tiny import TINY, tiny_spec
from trainables.job import Job
from trainables.models.build import build_model

TRIAL = "badnets/super_ft/0000"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one real trial, run without Ray; its store beside it."""
    folder = tmp_path_factory.mktemp("study")
    spec = tiny_spec(f"store={folder / 'store'}")
    (folder / "study.yaml").write_text(yaml.safe_dump({**TINY, "store": str(folder / "store")}))
    plan, _, _ = prepare(spec)
    (search,) = plan.searches
    settings = search.settings(search.paper_params()) | {"iterations": 50}
    job = Job("badnets/super_ft", TRIAL, "search", search.cells[0], settings, published=False)
    row = run_job(plan.spec, job, torch.device("cpu"), 1) | {"search": "badnets/super_ft"}
    with Ledger(folder / "trials.jsonl") as ledger:
        ledger.append(row)
    return folder


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """The folder of a study whose one row nobody measured."""
    folder = tmp_path / "made-up"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump({**TINY, "name": "made-up"}))
    with Ledger(folder / "trials.jsonl") as ledger:
        ledger.append(make_row(TRIAL, seed=0))
    return folder


def _row(study: Path) -> dict[str, Any]:
    with Ledger(study / "trials.jsonl") as ledger:
        return dict(ledger.rows()[0])


@pytest.mark.slow
def test_the_model_of_a_trial_measures_as_its_row_says(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    told = invoke("export", study, "--trial", TRIAL, "--out", out)
    assert told.exit_code == 0, told.output
    assert "every result equals its row" in told.stdout
    card, row = json.loads(out.with_suffix(".json").read_text()), _row(study)
    assert (card["trial"], card["checked"]["equal"], card["row"]["asr"]) == (TRIAL, True, row["asr"])
    model = build_model(card["arch"], num_classes=card["num_classes"], width=card["width"], image_size=8)
    model.load_state_dict(load_file(out))

    # The victim by the beginning of its name; the file's rates are the row's.
    victim = row["victim"][:8]
    again = invoke("evaluate", "--weights", out, "--victim", victim, "--store", study / "store", "--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert (found["asr"], found["clean_accuracy"]) == (row["asr"], row["clean_accuracy"])
    assert found["asr_victim"] == row["asr_before"]
    out.write_bytes(b"nothing")
    spoilt = invoke("evaluate", "--weights", out, "--victim", victim, "--store", study / "store")
    assert_refused(spoilt, "neither safetensors nor a file of torch.save")

    # The one member of the front is its most accurate one, and what a user picks who gives up five points at most.
    picked = invoke("export", study, "--pick", "max_der", "--out", tmp_path / "picked.pt")
    assert picked.exit_code == 0, picked.output
    assert torch.equal(torch.load(tmp_path / "picked.pt", weights_only=True)["classifier.bias"], model.classifier.bias)


@pytest.mark.slow
def test_a_row_that_the_model_does_not_measure_as_is_told_and_nothing_written(study: Path, tmp_path: Path) -> None:
    false = tmp_path / "false"
    false.mkdir()
    (false / "study.yaml").write_text((study / "study.yaml").read_text())
    with Ledger(false / "trials.jsonl") as ledger:
        ledger.append({**_row(study), "clean_accuracy": 0.123})
    refused = invoke("export", false, "--trial", TRIAL, "--out", tmp_path / "model.safetensors")
    assert_refused(refused, "does not measure as its row says (clean_accuracy 0.1230, now", "nothing was written")
    assert not (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_exported_or_measured_is_one_line(made_up: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "m.safetensors")
    assert_refused(invoke("export", made_up, *out), "either with --trial ID or with --pick")
    assert_refused(invoke("export", made_up, "--trial", "badnets/super_ft/9", *out), "--trial: no trial", "0000")
    assert_refused(invoke("export", made_up, "--pick", "best", *out), "--pick 'best': must be one of knee, drop_0.5")
    assert_refused(invoke("export", made_up, "--pick", "knee", "--attack", "wanet", *out), "no front of")
    (tmp_path / "w.pth").write_bytes(b"nothing")
    weights = ("--weights", tmp_path / "w.pth", "--store", tmp_path / "store")
    assert_refused(invoke("evaluate", *weights, "--victim", "nobody"), "--victim 'nobody'", "holds no such victim")
    assert_refused(invoke("evaluate", *weights, "--victim", "../store"), "must be the name of a victim")
