"""The matrix: one cell says how a setting did, or which condition failed, and never a number that looks fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from study.record.columns import to_frame
from study.report.matrix import (
    ASR_STEPS,
    COLOURS,
    LOST_STEPS,
    TEXT_COLOUR,
    Cell,
    Matrix,
    legend_html,
    matrix_html,
    matrix_of,
    step_of,
)
from study.results.fronts import fronts
from study.results.outcomes import outcome_counts
from study.results.settings import aggregate
from tests.study.rows import failed_row, made_up_study, make_row, point


def _matrix(rows: Sequence[Mapping[str, Any]], targets: Mapping[str, str] | None = None) -> Matrix:
    frame = to_frame(rows)
    return matrix_of(aggregate(frame), fronts(frame), outcome_counts(frame), targets)


def _cells(matrix: Matrix, defense: str, attack: str = "badnets") -> tuple[Cell, ...]:
    (found,) = [cells[attack] for name, _, cells in matrix.rows if name == defense]
    return found


def test_a_search_has_its_published_and_its_tuned_setting_and_a_baseline_its_only_one() -> None:
    rows = [
        point(0, 0.4, 0.95, published=True, asr_report=0.42, clean_accuracy_report=0.94),
        point(1, 0.1, 0.98, asr_report=0.12, clean_accuracy_report=0.97),
        point(2, 0.0, 0.90),  # less ASR, but for too much accuracy
        make_row("badnets/ft/baseline", asr=0.9, clean_accuracy=0.97),
    ]
    matrix = _matrix(rows)
    published, tuned = _cells(matrix, "super_ft")
    assert (published.asr, published.accuracy, published.words) == (0.42, 0.94, "")
    assert (tuned.asr, tuned.accuracy, tuned.lost) == (0.12, 0.97, pytest.approx(0.015))  # 98.5 % before
    (baseline,) = _cells(matrix, "ft")
    assert (baseline.asr, baseline.accuracy) == (0.9, 0.97)
    (before,) = _cells(matrix, "before repair")
    assert (before.asr, before.accuracy) == (0.99, 0.985)


def test_a_search_that_picks_the_published_setting_shows_it_once() -> None:
    matrix = _matrix([point(0, 0.1, 0.98, published=True), point(1, 0.2, 0.97)])
    assert _cells(matrix, "super_ft")[1].same
    row = matrix_html(matrix, {}).partition('<th scope="row">super_ft')[2].partition("</tr>")[0]
    assert row.count("<td") == 1
    assert 'colspan="2"' in row


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"collapsed": True, "asr": 0.0, "clean_accuracy": 0.1}, "collapsed"),
        ({"status": "abstained"}, "abstained"),
        ({"status": "diverged", "asr": 1.0, "clean_accuracy": 0.0}, "diverged"),
        ({"status": "backdoor_not_implanted"}, "not implanted"),
    ],
)
def test_a_condition_that_failed_stands_in_place_of_the_numbers(changes: dict[str, Any], words: str) -> None:
    matrix = _matrix([make_row("badnets/ft/baseline", **changes), make_row("blended/ft/baseline", attack="blended")])
    (cell,) = _cells(matrix, "ft")
    assert (cell.words, cell.asr, cell.accuracy) == (words, None, None)
    html = matrix_html(matrix, {}).partition('<th scope="row">ft')[2].partition("</td>")[0]
    assert words in html
    assert "%" not in html.partition("<span>")[2], "no number beside it"
    assert _cells(matrix, "ft", "blended")[0].words == ""


def test_a_failed_trial_says_failed_and_a_missing_one_not_run() -> None:
    rows = [failed_row("badnets/ft/baseline"), make_row("badnets/fp/baseline")]
    rows.append(make_row("blended/fp/baseline", attack="blended"))
    matrix = _matrix(rows)
    assert _cells(matrix, "ft")[0].words == "failed"
    row = matrix_html(matrix, {}).partition('<th scope="row">ft')[2].partition("</tr>")[0]
    assert "not run" in row


def test_some_unsound_runs_of_several_are_counted_and_their_mean_has_no_colour() -> None:
    rows = [make_row("badnets/ft/baseline", seed=seed, asr=asr) for seed, asr in enumerate((0.0, 0.05, 0.9))]
    sound = _matrix(rows)
    (cell,) = _cells(sound, "ft")
    assert cell.words == ""
    assert cell.note == "ASR ≤ 10% in 2 of 3"
    rows[2] |= {"collapsed": True}
    mixed = _matrix(rows)
    (cell,) = _cells(mixed, "ft")
    assert cell.words == "1 of 3 collapsed"
    html = matrix_html(mixed, {}).partition('<th scope="row">ft')[2].partition("</tr>")[0]
    assert 'class="void"' in html
    assert 'class="v' not in html.replace('class="void"', "")


def test_a_mean_over_fewer_runs_than_its_rivals_says_so() -> None:
    rows = [point(0, 0.1, 0.95, published=True, seed=0), failed_row("badnets/super_ft/0000", seed=1, published=True)]
    rows += [point(1, 0.2, 0.95, seed=seed) for seed in (0, 1)]
    published, _ = _cells(_matrix(rows), "super_ft")
    assert published.words == "1 of 2 failed"


def test_no_setting_that_loses_little_is_said_in_words() -> None:
    (_, tuned) = _cells(_matrix([point(0, 0.0, 0.9, published=True)]), "super_ft")
    assert (tuned.words, tuned.asr) == ("all lose more than 1 point", None)


def test_a_search_over_all_attacks_shows_each_attacks_own_values_of_the_shared_setting() -> None:
    rows = []
    for number, (asr_badnets, asr_blended) in enumerate([(0.5, 0.5), (0.0, 0.3), (0.2, 0.0)]):
        for attack, asr in (("badnets", asr_badnets), ("blended", asr_blended)):
            trial = f"all/super_ft/{number:04d}"
            rows.append(make_row(trial, attack=attack, asr=asr, clean_accuracy=0.98, published=number == 0))
    matrix = _matrix(rows)
    # Least mean ASR: setting 2 (0.1 against 0.15), though for badnets alone setting 1 is better.
    assert [_cells(matrix, "super_ft", attack)[1].asr for attack in ("badnets", "blended")] == [0.2, 0.0]
    assert matrix.attacks == ["badnets", "blended"]


def test_colours_keep_to_their_steps_and_text_on_them_is_readable() -> None:
    assert [step_of(value, ASR_STEPS) for value in (0.0, 0.05, 0.051, 0.5, 0.81, 1.0)] == [0, 0, 1, 2, 4, 4]
    assert [step_of(value, LOST_STEPS) for value in (-0.1, 0.01, 0.02, 0.05, 0.1, 0.11)] == [0, 0, 1, 2, 3, 4]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS:
        assert (luminance(colour) + 0.05) / (luminance(TEXT_COLOUR) + 0.05) > 7  # WCAG AAA
    assert len(COLOURS) == len(ASR_STEPS) + 1 == len(LOST_STEPS) + 1


def test_the_legend_tells_all_colours_and_conditions_in_words() -> None:
    legend = legend_html(searched=True)
    for words in ("up to 5 %", "up to 1 point<", "up to 10 points", "more", "Published", "Tuned"):
        assert words in legend
    for words in ("Not implanted", "Collapsed", "Abstained", "Diverged", "Failed"):
        assert words in legend
    assert "Tuned" not in legend_html(searched=False)


def test_fourteen_attacks_by_eighteen_defenses_fill_their_own_box() -> None:
    attacks, defenses = [f"a{i:02d}" for i in range(14)], [f"d{i:02d}" for i in range(18)]
    rows = [make_row(f"{a}/{d}/baseline") for a in attacks for d in defenses]
    matrix = _matrix(rows)
    html = matrix_html(matrix, {a: a for a in attacks})
    assert html.count('<th scope="row">') == 19
    assert html.count('<div class="wide matrix">') == 1
    assert all(f'<a href="#{a}">{a}</a>' in html for a in attacks)


def test_the_attackers_class_stands_below_the_attack() -> None:
    matrix = _matrix(made_up_study(attacks=("badnets",), trials=2), {"badnets": "0 (airplane)"})
    assert "target class 0 (airplane)" in matrix_html(matrix, {})


def test_of_how_many_models_is_said_whatever_the_number_of_defenders() -> None:
    """Two defense seeds make four runs of two models; the third holds no backdoor."""
    rows = [
        make_row("badnets/ft/baseline", asr=0.1, clean_accuracy=0.97, seed=seed, defense_seed=own, models=3)
        for seed in (0, 1)
        for own in (0, 1)
    ]
    (cell,) = _cells(_matrix(rows), "ft")
    assert "on 2 of 3 models" in cell.note
