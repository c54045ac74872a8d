"""Claims of `superft repair --choose`: what is refused before any work, what is told, and how a choice goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import superft
from study.cluster.workers import InThisProcess
from study.record.stopped import StudyStoppedError
from study.record.tried import TriedRows
from study.report.figures.planted import CHOSEN, FRONT, TRIED, planted_png
from study.run.choosing import Chooser
from study.run.own_choice import PICTURE, draw
from study.search.candidates import Candidates
from study.spec.yaml_io import SpecError
from superft.testing.toy_victims import toy
from tests.study.commands import assert_refused, invoke
from tests.trainables.foreign.nets import MEAN, STD, trained
from trainables.choice.base import PUBLISHED, RULES, Candidate, Choice, NothingSafeError, super_ft
from trainables.foreign.images import from_arrays
from trainables.foreign.repair import Repaired, repair_model
from trainables.training.loop import Counters

CPU = torch.device("cpu")
SHORT = (super_ft(2, 0.1), super_ft(3, 0.1))


class Counting(InThisProcess):
    """Says what was done, and loses a piece once ``last`` have been done."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__(CPU)
        self.done: list[str] = []
        self._last = last

    def start(self, piece: Callable[..., Any], *given: Any) -> Any:
        return partial(self._do, piece, given)

    def _do(self, piece: Callable[..., Any], given: Sequence[Any]) -> Any:
        if self._last is not None and len(self.done) == self._last:
            raise RuntimeError("the worker is gone")
        self.done.append(piece.__name__)
        return piece(*given, self.device)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates of a few steps."""
    monkeypatch.setattr("study.run.choosing.first_candidates", lambda count: SHORT[:count])


def _repaired(rule: str, folder: Path, workers: Counting, trials: int = 2, **settings: Any) -> Repaired:
    data, folder = toy().train, folder / "tried"
    folder.mkdir(exist_ok=True)
    rows = TriedRows(folder)
    try:
        choose = Chooser(RULES.create(rule, settings), trials, workers, rows, None)
        clean = from_arrays(data.images, data.labels, None)
        return repair_model(trained(), clean, choose, mean=MEAN, std=STD, device=CPU, seed=0)
    finally:
        rows.close()


@pytest.mark.usefixtures("few")
def test_what_was_tried_before_a_worker_was_lost_is_not_tried_again(tmp_path: Path) -> None:
    calm = _repaired("highest_peak", tmp_path, whole := Counting(), drop=1.0)
    assert whole.done == ["try_there"] * 2
    assert calm.report["choice"]["rule"] == "highest_peak"
    assert calm.report["settings"]["iterations"] in (2, 3)

    cut = tmp_path / "cut"
    cut.mkdir()
    with pytest.raises(StudyStoppedError, match="the worker is gone"):
        _repaired("highest_peak", cut, Counting(last=1), drop=1.0)
    again = _repaired("highest_peak", cut, rest := Counting(), drop=1.0)
    # One was left, and a model that only an earlier process had is made once more.
    assert 1 <= len(rest.done) <= 2
    assert again.report["choice"]["candidate"] == calm.report["choice"]["candidate"]
    state = calm.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())


@pytest.mark.usefixtures("few")
def test_a_planted_choice_tries_every_candidate_on_every_copy(tmp_path: Path) -> None:
    # Repairs of four and six steps remove nothing, so the rule refuses: what it looked at is told all the same.
    with pytest.raises(NothingSafeError) as refusal:
        _repaired("planted", tmp_path, workers := Counting(), kinds="patch,noise", gone=0.0, margin=0.0)
    choice = refusal.value.choice
    assert workers.done[:2] == ["plant_there"] * 2
    tried = [json.loads(line) for line in (tmp_path / "tried" / "trials.jsonl").read_text().splitlines()]
    sound = {row["attack"].split("-")[0] for row in tried}
    assert workers.done.count("try_there") == len(tried)
    if choice.table:  # both copies were sound: two candidates, and two that stand beside them
        assert sound == {"patch", "noise"}
        assert len(tried) == 2 * 4
        assert {row["candidate"] for row in choice.table} >= {one.label for one in SHORT}
    assert all("asr" not in row for row in tried), "a planted ASR is no ASR"


def planted_table() -> list[dict[str, Any]]:
    """Three candidates on two copies, one of them beaten by another, and the model itself."""
    found = (("a", 0.9, 0.2, 0.98), ("b", 0.02, 0.01, 0.95), ("c", 0.3, 0.0, 0.94))
    rows = [
        {"candidate": name, "planted_asr": max(patch, noise), "planted_asr.patch": patch, "planted_asr.noise": noise}
        | {"planted_asr.patch.low": 0.0, "planted_asr.patch.high": 1.0, "validation_accuracy": accuracy}
        for name, patch, noise, accuracy in found
    ]
    return [*rows, {"untouched": True, "candidate": "b", "validation_accuracy": 0.9}]


def test_the_picture_of_a_planted_choice_marks_its_front_and_what_was_chosen() -> None:
    figure = planted_png(planted_table(), "b")
    assert figure is not None
    (axis,) = figure.axes
    drawn = {str(line.get_label()): np.column_stack(line.get_data()).tolist() for line in axis.get_lines()}
    assert drawn[TRIED] == [[0.98, 0.9], [0.95, 0.02], [0.94, 0.3]]
    assert drawn[FRONT] == [[0.95, 0.02], [0.98, 0.9]], "c leaves more and costs more than b"
    assert drawn[CHOSEN] == [[0.95, 0.02]]
    whiskers = [np.asarray(line.get_ydata()).tolist() for line in axis.get_lines() if str(line.get_label())[0] == "_"]
    assert whiskers == [[0.2, 0.9], [0.01, 0.02], [0.0, 0.3]], "over the copies, not over the intervals"


def test_a_picture_lies_beside_the_rows_also_where_nothing_was_chosen_but_not_without_copies(tmp_path: Path) -> None:
    draw(Choice("planted", None, ("none is safe",), Counters(), table=tuple(planted_table())), tmp_path)
    with Image.open(tmp_path / PICTURE) as picture:
        assert min(picture.size) > 300
    (tmp_path / "other").mkdir()
    draw(
        Choice("validation", None, (), Counters(), table=({"candidate": "a", "validation_accuracy": 0.9},)),
        tmp_path / "other",
    )
    assert not list((tmp_path / "other").iterdir())


def test_a_sampler_proposes_the_same_candidates_whatever_is_ready_first() -> None:
    class Score:
        asr, accuracy = 0.5, 0.9

    known = (super_ft(25, 0.1), super_ft(60, 0.1))

    def all_of(seed: int, ready: Callable[[Candidate], Any]) -> tuple[Candidate, ...]:
        proposals = Candidates(known, PUBLISHED, 9, seed)
        while proposals.next(ready) is not None:
            pass
        return proposals.proposed

    assert all_of(1, lambda _: Score()) == all_of(1, lambda _: Score())
    assert all_of(1, lambda _: Score())[:2] == known
    assert all_of(1, lambda _: Score()) != all_of(2, lambda _: Score())
    stuck = all_of(1, lambda _: None)  # nothing comes back: it waits, and invents no result
    assert len(stuck) < 9


def test_a_rule_that_tries_nothing_chooses_at_once(tmp_path: Path) -> None:
    data = toy().train
    found = superft.repair(trained(), data.images, data.labels, mean=MEAN, std=STD, choose="short_ramp", device="cpu")
    assert found.report["choice"]["rule"] == "short_ramp"
    assert found.report["settings"]["iterations"] == 120
    assert "chosen by        short_ramp" in str(found)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--choose", "plante"), ("unknown rule 'plante'", "planted")),
        (("--choose", "planted", "--trials", "0"), ("--trials 0", "at least 1")),
        (("--choose", "published", "--trials", "3"), ("--trials", "published tries no candidates")),
        (("--trials", "3"), ("--trials and --ledger belong to --choose",)),
        (("--choose", "planted", "--defense", "nad"), ("--choose planted", "super_ft", "nad")),
        (("--choose", "planted", "--set", "lr_max1=1"), ("--set lr_max1=1", "rule.KEY=VALUE")),
        (("--choose", "planted", "--set", "rule.gone=2"), ("gone",)),
        (("--choose", "transfer"), ("--ledger DIR",)),
        (("--choose", "transfer", "--ledger", "nowhere"), ("--ledger nowhere",)),
        (("--choose", "planted", "--ledger", "nowhere"), ("planted learns from no study",)),
        (("--choose", "validation", "--trials", "500"), ("proposes none",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_choice_that_cannot_be_made_is_refused_in_one_line(
    more: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    given = ("--weights", tmp_path / "no.pth", "--arch", "preact_resnet18", "--images", tmp_path / "no.npz")
    assert_refused(invoke("repair", *given, "--out", tmp_path / "new.pt", *more), *words)
    assert list(tmp_path.iterdir()) == []


def test_in_python_the_same_is_refused() -> None:
    data = toy().train
    with pytest.raises(SpecError, match="tries no candidates"):
        superft.repair(trained(), data.images, data.labels, choose="published", trials=3, device="cpu")
