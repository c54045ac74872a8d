"""Every figure of the paper is drawn by its recipe: the small ones, with settings of a few steps, up to the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from study.plan.jobs import prepare
from study.record.curves import write_curve
from study.record.folder import SPEC_FILE
from study.report.write import write_report
from study.spec.load import load_spec
from tests.study.spec.test_paper import SMALL
from tests.study.tiny import make_driver
from trainables.storage.store import Store
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

# A step or two of everything; nothing here is to be learned.
SHORT = {
    "abl": ("tuning_epochs: 1", "unlearning_epochs: 1", "finetuning_epochs: 1"),
    "ac": ("epochs: 1",),
    "spectral": ("epochs: 1",),
    "fp": ("steps: 2",),
    "nad": ("steps: 2", "teacher_steps: 2"),
    "nc": ("mask_steps: 2", "steps: 2"),
    "super_ft": ("iterations: 2",),
    "scratch": ("iterations: 2",),
}
OF_FT = ("ft", "ft_peak", "ft_peak_constant", "head_only", "ft_1e-4", "ft_3e-4", "ft_1e-3", "ft_1e-2", "ft_1e-1")
ENCODER = "{pretrain_epochs: 0.1, inject_epochs: 0.1, head_epochs: 0.1, reference_must_be_right: false}"
# What each recipe's header names as its figure; of the others, plane_all.
FIGURE = {
    "fig9": "reinjection_blended",
    "fig10": "reinjection_inputaware",
    "fig11": "reinjection_lf",
    "fig12": "reinjection_wanet",
    "fig13": "sweep_clean_fraction",
    "fig14": "curves_all",
    "fig15": "sweep_defense_super_ft_lr_max1",
    "main_transfer": "curves_all",
    "main_encoder": "curve_badencoder",
}


@pytest.fixture(autouse=True)
def _any_victim_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So short a training implants nothing, and figures leave such victims out."""
    monkeypatch.setattr(Victim, "why_not_implanted", None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Victims that recipes have in common are trained once."""
    return Store(tmp_path_factory.mktemp("store"))


def tiny(name: str) -> list[str]:
    """Assignments that cut a recipe to a few steps."""
    spec = load_spec(name)
    given = ["victim.epochs=0.1", "victim.require_implanted=run"]
    for label in spec.baselines:
        settings = ("steps: 2",) if label in OF_FT else SHORT.get(label, ())
        given += [f"defense.{label}.{setting.replace(': ', '=')}" for setting in settings]
    if spec.aftermath.reinjection is not None:
        given += ["aftermath.reinjection.epochs=0.4"]
    if spec.curve.every is not None:
        given += ["curve.every=1"]
    if "badencoder" in spec.attacks:
        given += [f"attack.badencoder={ENCODER}"]
    return given


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_draws_the_figure_that_its_header_names(name: str, tmp_path: Path, store: Store) -> None:
    spec = load_spec(name, tiny(name))
    plan, _, _ = prepare(spec)
    bench = Workbench(store, torch.device("cpu"), threads=1)
    driver = make_driver(spec, tmp_path / "trials.jsonl", plan=plan)
    (tmp_path / SPEC_FILE).write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    while (job := driver.next_job()) is not None:
        result = bench.run(job.cell, job.settings, job.curve, job.aftermath)
        row = driver.finish(job, result.row())
        if result.curve:
            write_curve(tmp_path, row, result.curve)
    page = write_report(tmp_path).read_text()
    assert "could not be drawn" not in page
    found = pd.read_csv(tmp_path / "trials.csv")
    assert len(found) == len(plan.baselines)
    assert not found["status"].eq("failed").any()
    short = name.removeprefix("paper/").removesuffix("-small")
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert FIGURE.get(short, "plane_all") in drawn
