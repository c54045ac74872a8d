"""The rule `transfer`: what was best on other attacks, from rows of a ledger."""

from pathlib import Path
from typing import Any

import pytest

from study.record.columns import to_frame
from study.results.transfer import Transfer, best_elsewhere
from tests.study.rows import failed_row, make_row
from trainables.registry import SettingError

ATTACKS = ("one", "two", "three")


def rows(lr: float, asr: dict[str, float], accuracy: float = 0.95, **changes: Any) -> list[dict[str, Any]]:
    """A setting on several attacks; before any repair accuracy was 0.985."""
    return [
        make_row(f"all/super_ft/{lr}", attack=attack, asr=value, clean_accuracy=accuracy, **{"param.lr": lr}, **changes)
        for attack, value in asr.items()
    ]


def test_the_attack_that_the_choice_is_for_is_left_out() -> None:
    frame = to_frame(
        [
            *rows(0.1, {"one": 0.0, "two": 0.5, "three": 0.5}),
            *rows(0.2, {"one": 0.9, "two": 0.1, "three": 0.2}),
        ]
    )
    chosen = best_elsewhere(frame, without="one")
    assert chosen is not None
    assert chosen.candidate.settings == {"lr": 0.2}
    assert chosen.asr == pytest.approx(0.15)
    assert chosen.worst == pytest.approx(0.2)
    assert chosen.attacks == 2
    other = best_elsewhere(frame, without="three")
    assert other is not None
    assert other.candidate.settings == {"lr": 0.1}


def test_only_settings_that_were_run_on_all_other_attacks_are_compared() -> None:
    frame = to_frame([*rows(0.1, dict.fromkeys(ATTACKS, 0.3)), *rows(0.2, {"two": 0.0})])
    chosen = best_elsewhere(frame, without="one")
    assert chosen is not None
    assert chosen.candidate.settings == {"lr": 0.1}


def test_what_failed_on_a_model_or_was_dropped_in_a_race_is_no_rival() -> None:
    """It was measured on some runs alone, which may be the easier ones."""
    whole = [row for seed in (0, 1) for row in rows(0.1, dict.fromkeys(ATTACKS, 0.3), seed=seed)]
    lucky = rows(0.2, dict.fromkeys(ATTACKS, 0.0), seed=0)
    failed = [failed_row("all/super_ft/0.2", attack=attack, seed=1, **{"param.lr": 0.2}) for attack in ATTACKS]
    dropped = [{**row, "dropped_by": "all/super_ft/0.1"} for row in rows(0.3, dict.fromkeys(ATTACKS, 0.0), seed=0)]
    for others in ([*lucky, *failed], dropped):
        chosen = best_elsewhere(to_frame([*whole, *others]))
        assert chosen is not None
        assert chosen.candidate.settings == {"lr": 0.1}


def test_accuracy_bounds_the_choice_and_decides_between_equals() -> None:
    dear, fair, fairer = (
        rows(lr, dict.fromkeys(ATTACKS, asr), accuracy)
        for lr, asr, accuracy in ((0.1, 0.0, 0.8), (0.2, 0.105, 0.95), (0.3, 0.11, 0.96))
    )
    chosen = best_elsewhere(to_frame([*dear, *fair, *fairer]))
    assert chosen is not None
    assert chosen.candidate.settings == {"lr": 0.3}
    alone = best_elsewhere(to_frame([*dear]))
    assert alone is not None
    assert alone.lost == pytest.approx(0.185)


def test_what_collapsed_or_diverged_is_the_worst() -> None:
    frame = to_frame(
        [
            *rows(0.1, dict.fromkeys(ATTACKS, 0.0), collapsed=True),
            *rows(0.2, dict.fromkeys(ATTACKS, 0.4)),
        ]
    )
    chosen = best_elsewhere(frame)
    assert chosen is not None
    assert chosen.candidate.settings == {"lr": 0.2}


def test_a_run_that_abstained_left_its_backdoor() -> None:
    frame = to_frame(
        [
            *rows(0.1, dict.fromkeys(ATTACKS, 0.05), seed=0),
            *rows(0.1, dict.fromkeys(ATTACKS, 0.05), seed=1),
            *rows(0.2, dict.fromkeys(ATTACKS, 0.03), seed=0),
            *rows(0.2, dict.fromkeys(ATTACKS, 1.0), 0.985, seed=1, status="abstained"),
        ]
    )
    chosen = best_elsewhere(frame)
    assert chosen is not None
    assert (chosen.candidate.settings, chosen.asr) == ({"lr": 0.1}, pytest.approx(0.05))


def test_no_rows_are_no_choice_and_no_file_is_one_clear_line(tmp_path: Path) -> None:
    assert best_elsewhere(to_frame(rows(0.1, {"one": 0.1})), without="one") is None
    with pytest.raises(
        SettingError, match=r"rule\.transfer\.ledgers must name trials\.jsonl of studies: no file was given"
    ):
        Transfer().choose(None)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"nowhere\.jsonl"):
        Transfer(ledgers=str(tmp_path / "nowhere.jsonl")).choose(None)  # type: ignore[arg-type]
