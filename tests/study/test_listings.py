"""Settings of methods as rows and as text; recipes to copy; what fits a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
from click.testing import Result

from search_spaces import space as search_spaces
from study.listings import SettingRow, in_yaml, settings_rows, settings_text, terminal_width, two_columns
from study.spec.load import recipe_names, recipe_path
from study.spec.yaml_io import parse_yaml
from tests.study.commands import assert_refused, invoke
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES, Defense
from trainables.registry import Registry, SettingError


@pytest.fixture
def superft() -> Callable[..., Result]:
    return invoke


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Standard output on a terminal of so many columns."""

    def wide(number: int) -> None:
        for module in ("study.listings", "study.report.terminal"):
            monkeypatch.setattr(f"{module}.terminal_width", lambda: number)

    return wide


METHODS = [*ATTACKS.names(), *DEFENSES.names()]


def rows_by_name(method: str) -> dict[str, SettingRow]:
    return {row.setting: row for row in settings_rows(method)}


def test_a_row_tells_all_of_a_setting() -> None:
    assert rows_by_name("super_ft")["lr_max1"] == SettingRow(
        kind="defense",
        method="super_ft",
        setting="lr_max1",
        type="number",
        default="0.1",
        allowed="> 0",
        published="0.1",
        searched="0.01..2 log",
        meaning="peak of phase 1, > 0.",
        inherited=False,
    )
    assert rows_by_name("super_ft")["select"].value == "last, val"
    assert rows_by_name("super_ft")["cooldown_lr"].value == "number > 0, or null"
    assert rows_by_name("badnets")["label_mode"].inherited
    assert rows_by_name("badnets")["label_shift"].value == "whole number"


@pytest.mark.parametrize("defense", search_spaces.names())
def test_published_values_and_searched_settings_are_those_of_the_search_space(defense: str) -> None:
    rows = rows_by_name(defense)
    published = {name: row.published for name, row in rows.items() if row.published}
    assert published == {name: in_yaml(value) for name, value in search_spaces.paper_point(defense).items()}
    assert {name for name, row in rows.items() if row.searched} == set(search_spaces.get_space(defense).distributions)


@pytest.mark.parametrize("value", [None, True, False, 3, 0.0003, 1e-8, "cosine"])
def test_a_default_is_written_as_a_spec_takes_it(value: Any) -> None:
    assert parse_yaml(in_yaml(value), "test") == value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_settings_fit_the_terminal(method: str, width: int, columns: Callable[[int], None]) -> None:
    columns(width)
    text = settings_text(method)
    lines = text.splitlines()[1:-1]  # the first and the last are sentences, which a terminal may wrap
    assert max((len(line) for line in lines), default=0) <= width
    flat = " ".join(text.split())
    for row in settings_rows(method):
        assert row.setting in flat
        if width < 100:  # a table interleaves the lines of its cells
            assert " ".join(row.meaning.replace("`", "").replace("None", "null").split()) in flat


def test_what_is_no_terminal_gets_one_whole_line_for_each_setting(superft: Callable[..., Result]) -> None:
    lines = superft("list", "settings", "handcrafted").stdout.splitlines()
    for row in settings_rows("handcrafted"):
        (line,) = [line for line in lines if line.split()[:1] == [row.setting]]
        assert line.endswith(row.meaning.replace("`", "").replace("None", "null"))


def test_own_settings_come_before_those_that_all_attacks_have(superft: Callable[..., Result]) -> None:
    text = superft("list", "settings", "badnets").stdout
    assert text.index("\n size ") < text.index("\n target_label ")


def test_a_method_without_settings_says_so(superft: Callable[..., Result]) -> None:
    assert "It has no settings." in superft("list", "settings", "none").stdout


def test_a_name_that_is_an_attack_and_a_defense_lists_both(
    monkeypatch: pytest.MonkeyPatch, superft: Callable[..., Result]
) -> None:
    @dataclass(frozen=True)
    class Blended(Defense):
        """A defense with an attack's name."""

        strength: float = 1.0

        def repair(self, *_arguments: Any) -> Any:
            raise NotImplementedError

        def plan(self, *_arguments: Any) -> Any:
            raise NotImplementedError

    registry: Registry[Any] = Registry("defense", "trainables.defenses")
    registry.register("blended")(Blended)
    monkeypatch.setattr("study.listings.DEFENSES", registry)
    text = superft("list", "settings", "blended").stdout
    assert text.startswith("blended is an attack and a defense; both are listed.")
    assert text.index("attack blended: ") < text.index("defense blended: A defense with an attack's name.")
    assert "strength" in text
    assert "alpha_test" in text


def test_an_unknown_method_names_the_nearest(superft: Callable[..., Result]) -> None:
    words = "unknown attack or defense 'superft': did you mean 'super_ft'?"
    assert_refused(superft("list", "settings", "superft"), words)
    with pytest.raises(SettingError, match="did you mean 'badnets'"):
        settings_rows("badnet")


def test_a_missing_or_useless_name_is_refused(superft: Callable[..., Result]) -> None:
    assert_refused(superft("list", "settings"), "needs the name of an attack or a defense")
    assert_refused(superft("list", "attacks", "badnets"), "list attacks takes no name", "list settings badnets")


def test_two_columns_hang_on_a_terminal_and_stay_whole_elsewhere(columns: Callable[[int], None]) -> None:
    rows = [("a", "one two three four five"), ("longer", "x")]
    assert two_columns(rows) == "a       one two three four five\nlonger  x"
    columns(30)
    assert two_columns([("a", "word " * 8), ("longer", "x")]) == (
        "a       word word word word\n        word word word word\nlonger  x"
    )


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_width_is_the_terminals_and_nobodys_for_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "73")
    monkeypatch.setattr(sys, "stdout", StringIO())
    assert terminal_width() is None
    monkeypatch.setattr(sys, "stdout", Screen())
    assert terminal_width() == 73


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_printed_as_it_is_in_its_file(name: str, superft: Callable[..., Result]) -> None:
    assert superft("recipe", name).stdout == recipe_path(name).read_text()


def test_an_unknown_recipe_names_the_nearest(superft: Callable[..., Result]) -> None:
    assert_refused(superft("recipe", "publishd"), "unknown recipe 'publishd'", "did you mean 'published'")
