"""One defense may stand in a study several times, under labels of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.plan.jobs import make_plan
from study.record.columns import to_frame
from study.results.fronts import fronts
from study.results.settings import aggregate
from study.spec.load import make_spec
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from tests.study.tiny import TINY, make_driver, run
from trainables.registry import SettingError


def labelled(**changes: Any) -> StudySpec:
    """A study with fine-tuning at two rates beside super-fine-tuning, searched under a label too."""
    given: dict[str, Any] = {
        "defenses": ["super_ft", "short"],
        "baselines": ["none", "ft", "ft_peak"],
        "defense": {
            **TINY["defense"],
            "ft_peak": {"method": "ft", "lr": 0.1, "schedule": "constant"},
            "short": {"method": "super_ft", "batch_size": 16, "cycles1": 0.1},
        },
        "search": {**TINY["search"], "ranges": {"short": {"iterations": [20, 500]}}},
    }
    return make_spec(TINY | given | changes)


def test_a_label_is_a_line_of_the_plan_with_settings_of_its_own() -> None:
    plan = make_plan(labelled())
    jobs = {job.cell.label: job for job in plan.baselines}
    assert list(jobs) == ["none", "ft", "ft_peak"]
    assert jobs["ft_peak"].cell.defense == jobs["ft"].cell.defense == "ft"
    assert jobs["ft_peak"].trial == "badnets/ft_peak/baseline"
    assert (jobs["ft_peak"].settings["lr"], jobs["ft"].settings["lr"]) == (0.1, 0.01)
    assert (jobs["ft"].published, jobs["ft_peak"].published) == (True, False)
    assert [(search.label, search.defense) for search in plan.searches] == [
        ("badnets/super_ft", "super_ft"),
        ("badnets/short", "super_ft"),
    ]
    high = {search.label: search.space.distributions["iterations"].high for search in plan.searches}  # type: ignore[attr-defined]
    assert high["badnets/short"] == 500 != high["badnets/super_ft"], "a range is the label's own"


def test_a_label_is_a_row_a_front_and_a_mark_of_its_own(tmp_path: Path) -> None:
    driver = make_driver(labelled(), tmp_path / "trials.jsonl")
    run(driver)
    frame = to_frame(driver.ledger.rows())
    assert set(zip(frame["defense"], frame["defense_label"], strict=True)) == {
        *(("none", "none"), ("ft", "ft"), ("ft", "ft_peak")),
        *(("super_ft", "super_ft"), ("super_ft", "short")),
    }
    table = aggregate(frame)
    assert table[table["role"] == "baseline"]["defense_label"].tolist() == ["none", "ft", "ft_peak"]
    assert set(fronts(frame)["defense_label"]) == {"super_ft", "short"}


@pytest.mark.parametrize(
    ("defense", "said"),
    [
        ({}, r"unknown defense 'ft_peak': .*; a label of your own needs defense.ft_peak.method: DEFENSE"),
        ({"ft_peak": {"method": "fy"}}, r"defense.ft_peak.method: unknown defense 'fy'"),
        ({"ft_peak": {"method": 3}}, r"defense.ft_peak.method: unknown defense 3"),
        ({"ft_peak": {"method": "ft", "lrr": 1}}, r"unknown setting defense.ft_peak.lrr: did you mean 'lr'"),
        ({"ft_peak": {"method": "ft"}, "nad": {"method": "ft"}}, r"nad is the name of a defense itself"),
        ({"ft_peak": {"method": "ft"}, "a/b": {"method": "ft"}}, r"defense.a/b: a label is made of letters"),
    ],
)
def test_a_label_that_names_nothing_is_refused_by_its_key(defense: dict[str, Any], said: str) -> None:
    with pytest.raises((SpecError, SettingError), match=said):
        make_spec(TINY | {"baselines": ["ft_peak"], "defense": TINY["defense"] | defense})


def test_a_stored_spec_with_labels_reads_back_the_same(tmp_path: Path) -> None:
    from study.spec.load import load_spec

    path = tmp_path / "study.yaml"
    path.write_text(labelled().to_yaml(), encoding="utf-8")
    assert load_spec(str(path)) == labelled()


def test_every_defender_meets_every_victim(tmp_path: Path) -> None:
    spec = labelled(seeds=[0, 5], defense_seeds=[0, 1, 2], defenses=["super_ft"], baselines=["ft_peak"])
    plan = make_plan(spec)
    pairs = [(job.cell.seed, job.cell.defense_seed) for job in plan.baselines]
    assert pairs == [(0, 0), (0, 1), (0, 2), (5, 0), (5, 1), (5, 2)]
    assert [(cell.seed, cell.defense_seed) for cell in plan.searches[0].cells] == pairs
    assert len(plan.victims()) == 4, "two victims and their controls, however many defenders"
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    run(driver)
    assert driver.finished
    assert driver.total == 6 * (1 + spec.search.trials)
    again = make_driver(spec, tmp_path / "trials.jsonl")
    assert again.done == driver.total
    table = aggregate(to_frame(driver.ledger.rows()))
    assert set(table["cells"]) == {6}
    assert table["complete"].all()
