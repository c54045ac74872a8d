"""What the manual takes from the code is whole: every key, every method with every setting, every column."""

from __future__ import annotations

import dataclasses
import json
import re
from types import NoneType
from typing import get_args

import pytest
from pydantic import BaseModel

from docs import generate, meanings
from search_spaces import space as search_spaces
from study.spec.schema import StudySpec
from tests.docs.pages import MANUAL, ROOT, text_of
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES


def spec_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        part = field.annotation
        parts = get_args(part) if NoneType in get_args(part) else (part,)  # one that may be left out
        nested = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        found |= spec_keys(nested[0], f"{prefix}{name}.") if nested else {prefix + name}
    return found


def rows_of(table: str) -> dict[str, list[str]]:
    """First cell without code marks -> the others."""
    lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines()[2:]]
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_key_of_a_spec_has_a_row_with_a_meaning() -> None:
    rows = rows_of(generate.spec_keys())
    assert set(rows) == spec_keys(StudySpec)
    assert all(cells[-1] for cells in rows.values())
    assert set(meanings.SPEC_KEYS) <= set(rows), "a meaning of a key that is no more"


def test_limits_and_defaults_are_the_models() -> None:
    rows = rows_of(generate.spec_keys())
    assert rows["search.trials"][:2] == ["whole number >= 1", "`32`"]
    assert rows["clean_fraction"][0] == "number > 0 <= 1"
    assert rows["attacks"][1] == "**required**"


@pytest.mark.parametrize("registry", [ATTACKS, DEFENSES], ids=["attacks", "defenses"])
def test_every_setting_of_every_method_has_a_row_with_a_meaning(registry: object) -> None:
    for name in registry.names():  # type: ignore[attr-defined]
        rows = {row[0].strip("`"): row for row in generate.settings_rows(registry, name)}  # type: ignore[arg-type]
        fields = {field.name for field in dataclasses.fields(registry.get(name))}  # type: ignore[attr-defined]
        assert fields <= set(rows), name
        assert all(row[-1] for row in rows.values()), name


def test_published_values_and_ranges_are_those_of_the_spaces() -> None:
    rows = {row[0].strip("`"): row for row in generate.settings_rows(DEFENSES, "super_ft")}
    assert rows["lr_max1"][2:5] == ("`0.1`", "`0.1`", "0.01 to 2, log")
    for name in search_spaces.names():
        table = generate.settings_rows(DEFENSES, name)
        assert {row[0].strip("`") for row in table if row[4]} >= set(search_spaces.get_space(name).distributions)


def test_every_column_of_the_committed_ledgers_is_explained() -> None:
    explained = set(rows_of(generate.result_columns()))
    for ledger in sorted((ROOT / "benchmarks" / "results").glob("*/trials.jsonl")):
        for line in ledger.read_text().splitlines():
            for column in json.loads(line):
                known = column in explained or column.startswith(("param.", "note."))
                assert known, f"{ledger.parent.name}: {column}"


def test_pages_name_only_parts_that_exist() -> None:
    for page in MANUAL:
        assert "<!-- generated:" not in text_of(page)  # KeyError for an unknown part
