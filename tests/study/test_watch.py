"""`superft show` for scripts, and at ledgers of many rows: documented keys, the numbers of the tables, and its cost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from docs.generate import show_keys
from study.record.files import write_atomically
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.ledger import Ledger
from study.record.now import Now, write_now
from study.report.terminal import front_summary
from study.results.fronts import fronts, hypervolume_over_trials
from study.results.left import plan_in, trials_left
from study.results.search_states import search_states
from study.watch.state import KEYS, STATES, state_of
from study.watch.words import MOST_FAILED, ROWS_WITH_FRONTS, overview
from tests.study.commands import invoke
from tests.study.rows import failed_row, made_up_study, make_row, point
from tests.study.tiny import AS_PUBLISHED, tiny_spec

ROOT = Path(__file__).parents[2]


def study(folder: Path, rows: list[dict[str, Any]], *changes: str) -> Path:
    """A study's folder with made-up rows."""
    folder.mkdir()
    write_atomically(folder / SPEC_FILE, tiny_spec(*changes).to_yaml().encode())
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / LEDGER_FILE).write_text(lines)
    return folder


def flat(keys: Any, prefix: str = "") -> set[str]:
    """Keys of an object and of the objects in it, with a dot; a list counts by its items, ``statuses`` has no keys."""
    found: set[str] = set()
    for key, value in keys.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict) and key != "statuses":
            found |= flat(inner, f"{key}.")
        else:
            found.add(f"{prefix}{key}")
    return found


def test_the_keys_are_those_that_the_manual_lists(tmp_path: Path) -> None:
    rows = [*made_up_study(trials=3), failed_row("badnets/super_ft/0007", node="abc")]
    folder = study(tmp_path / "one", rows, "attacks=[badnets, blended]", "search.trials=8")
    now = {"host": "h", "pid": 1, "began": 0.0, "seen": time.time(), "phase": "trials", "nodes": []}
    (folder / "now.json").write_text(json.dumps(now))
    shown = invoke("show", folder, "--json")
    state = json.loads(shown.stdout)
    assert flat(state) == set(KEYS), set(KEYS) ^ flat(state)
    assert list(state) == list(dict.fromkeys(key.partition(".")[0] for key in KEYS if key in flat(state)))[: len(state)]
    assert all(f"| `{key}` |" in show_keys() for key in KEYS)
    assert state["state"] in STATES
    assert shown.stderr == ""


def test_what_is_not_known_is_null_and_never_missing(tmp_path: Path) -> None:
    state = json.loads(invoke("show", study(tmp_path / "new", []), "--json").stdout)
    assert state["state"] == "not begun"
    assert (state["driver"], state["slots"], state["seconds_left"], state["last_trial_ended"]) == (None,) * 4
    assert state["trials"] == {"done": 0, "left": 5, "running": None}
    (search,) = state["searches"]
    assert (search["settings"], search["hypervolume_search"]) == (0, None)


def test_the_night_between_two_drivers_is_no_pace(tmp_path: Path) -> None:
    """Three trials in the evening; in the morning three more, a minute apart."""
    begin = datetime(2026, 11, 29, 18, tzinfo=UTC)
    rows = [point(number, 0.1, 0.9) for number in range(6)]
    minutes = [0, 1, 2, 840, 841, 842]
    for row, at in zip(rows, minutes, strict=True):
        row |= {"started": (begin + timedelta(minutes=at)).isoformat(), "wall_seconds": 0.0}
    folder = study(tmp_path / "one", rows, "search.trials=10")
    write_now(folder, Now("h", 1, (begin + timedelta(minutes=839)).timestamp(), time.time(), "trials"))
    state = state_of(folder, called="one")
    assert state.seconds_left is not None
    assert state.seconds_left / state.left.total() == pytest.approx(60)


def test_a_folder_that_is_no_study_is_refused_in_json_too(tmp_path: Path) -> None:
    shown = invoke("show", tmp_path, "--json")
    assert (shown.exit_code, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("per", ["attack", "all"])
def test_the_numbers_of_the_searches_are_those_of_the_tables(tmp_path: Path, per: str) -> None:
    rows = made_up_study(defenses=("super_ft",), trials=30, seeds=(0, 1), per=per)
    spec = tiny_spec(
        "attacks=[badnets, blended]", "seeds=[0, 1]", "search.trials=30", f"search.per={per}", *AS_PUBLISHED
    )
    plan = plan_in(tmp_path, spec, rows)
    states = {one.label: one for one in search_states(plan, rows, trials_left(plan, rows))}
    study(tmp_path / "one", rows)
    frame = Ledger.read(tmp_path / "one" / LEDGER_FILE).to_frame()
    volumes, members = hypervolume_over_trials(frame), fronts(frame)
    assert states
    for label, one in states.items():
        attack, defense = label.split("/")
        own = volumes[(volumes["attack"] == attack) & (volumes["defense_label"] == defense)]
        front = members[(members["attack"] == attack) & (members["defense_label"] == defense)]
        assert one.settings == len(own) > 0
        assert one.front == len(front)
        assert one.hypervolume_search == pytest.approx(own["search"].iloc[-1])
        assert one.hypervolume_report == pytest.approx(own["report"].iloc[-1])


def test_a_victim_without_a_backdoor_counts_in_no_search(tmp_path: Path) -> None:
    rows = [point(number, 0.1 * number, 0.9 + 0.01 * number) for number in range(4)]
    rows += [make_row(f"blended/super_ft/{n:04d}", status="backdoor_not_implanted", asr=0.0) for n in range(4)]
    folder = study(tmp_path / "one", rows, "attacks=[badnets, blended]", "baselines=[]", "victim.require_implanted=run")
    state = state_of(folder, called="it")
    assert [(one.label, one.settings) for one in state.searches] == [("badnets/super_ft", 4)]
    assert {one["attack"]: one["backdoor"] for one in state.victims()} == {
        "badnets": "implanted",
        "blended": "not implanted",
    }


def test_long_lists_are_cut_and_said_so(tmp_path: Path) -> None:
    rows = [failed_row(f"badnets/super_ft/{number:04d}") for number in range(MOST_FAILED + 5)]
    said = overview(study(tmp_path / "one", rows, "search.trials=50"), called="it")
    assert "failed: 5 trials before these 20" in said
    assert said.count("FAILED:") == MOST_FAILED


def many(count: int) -> list[dict[str, Any]]:
    """Rows as wide as real ones."""
    wide = {f"note.number_{number}": 0.123456789 * number for number in range(20)}
    return [
        point(number, (number * 7919 % 1000) / 1000, (number * 104729 % 1000) / 1000, node=f"{number % 4:08x}", **wide)
        for number in range(count)
    ]


def test_fronts_stand_below_up_to_a_thousand_rows_and_are_pointed_at_beyond(tmp_path: Path) -> None:
    few = study(tmp_path / "few", many(10), "search.trials=10", "baselines=[]")
    assert overview(few, called="it").endswith(front_summary(few))
    lots = study(tmp_path / "lots", many(ROWS_WITH_FRONTS + 1), "search.trials=2000", "baselines=[]")
    assert overview(lots, called="it").splitlines()[-1] == "the settings on the fronts: superft front it"


def test_ten_thousand_rows_cost_a_few_times_what_parsing_them_costs(tmp_path: Path) -> None:
    """Under a second on an idle core; held here against the parser, so that a loaded machine does not fail it."""
    folder = study(tmp_path / "big", many(10_000), "search.trials=10000", "baselines=[]", "search.sampler=random")
    state_of(folder, called="it")  # imports, and the spec
    lines = (folder / LEDGER_FILE).read_text().splitlines()

    def cost(work: Any) -> float:
        begin = time.process_time()
        work()
        return time.process_time() - begin

    parsing = min(cost(lambda: [json.loads(line) for line in lines]) for _ in range(2))
    looking = min(cost(lambda: overview(folder, called="it")) for _ in range(2))
    assert looking < 8 * parsing, f"{looking:.2f} s, and {parsing:.2f} s for the JSON alone"


def test_looking_imports_no_tables_and_no_plots() -> None:
    code = "import study.watch.words, sys; print(*sorted({'pandas', 'rich', 'matplotlib', 'ray'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ""
