"""Claims of trainables.plugins.load: where plug-ins come from, what they are called, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import foreign
from trainables.attacks.base import ATTACKS
from trainables.attacks.triggers import TRIGGERS
from trainables.defenses.base import DEFENSES
from trainables.plugins.load import load, loaded
from trainables.plugins.modules import PluginError

pytestmark = pytest.mark.usefixtures("_as_before")

TRIGGER = """
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.triggers import trigger_kind

@trigger_kind("half")
class Half(OverlayTrigger): ...
"""


def refused(*given: object) -> str:
    with pytest.raises(PluginError) as caught:
        load(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_a_plug_in(tmp_path: Path) -> None:
    (plugin,) = load([foreign.put(tmp_path, "plug_file.py", foreign.attack("corner_a"))])
    assert "corner_a" in ATTACKS
    assert (plugin.module, plugin.name, plugin.path) == ("plug_file", "plug_file", str(tmp_path / "plug_file.py"))
    assert plugin.version == f"unversioned+{plugin.source}"
    assert plugin in loaded()


def test_a_name_is_looked_for_in_the_working_folder_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.put(tmp_path, "plug_here.py", foreign.attack("corner_b"))
    monkeypatch.chdir(tmp_path)
    load(["plug_here"])
    assert "corner_b" in ATTACKS


def test_a_package_is_a_plug_in_with_the_modules_that_it_imports(tmp_path: Path) -> None:
    foreign.put(tmp_path, "plug_pack/__init__.py", "from plug_pack import one\nfrom . import two\n")
    foreign.put(tmp_path, "plug_pack/one.py", foreign.attack("corner_c"))
    foreign.put(tmp_path, "plug_pack/two.py", foreign.defense("scaled_c"))
    load([str(tmp_path / "plug_pack")])
    assert "corner_c" in ATTACKS
    assert "scaled_c" in DEFENSES


def test_a_plug_in_is_loaded_once(tmp_path: Path) -> None:
    path = foreign.put(tmp_path, "plug_once.py", foreign.attack("corner_d"))
    assert load([path]) == load([path, "plug_once"])[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", "plug-in {name}: {name}.py, line 1: SyntaxError: '(' was never closed"),
        ("import not_there\n", "plug-in {name}: {name}.py, line 1: ModuleNotFoundError: No module named 'not_there'"),
        ("\n1 / 0\n", "plug-in {name}: {name}.py, line 2: ZeroDivisionError: division by zero"),
        (foreign.attack("badnets"), "attack 'badnets' is registered twice (by trainables.attacks.badnets and {name})"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    name = f"plug_bad_{abs(hash(text)) % 10**8}"
    assert message.format(name=name) in refused(foreign.put(tmp_path, f"{name}.py", text))


def test_what_a_failed_plug_in_registered_is_forgotten(tmp_path: Path) -> None:
    text = foreign.attack("corner_e") + TRIGGER
    refused(foreign.put(tmp_path, "plug_half.py", text + "\n1 / 0\n"))
    assert "corner_e" not in ATTACKS
    assert "half" not in TRIGGERS
    load([foreign.put(tmp_path, "plug_half.py", text)])
    assert "half" in TRIGGERS


def test_what_is_not_there_or_has_no_usable_name_is_refused(tmp_path: Path) -> None:
    assert "plug-in plug_nowhere: no module of that name is installed" in refused("plug_nowhere")
    assert "no such file" in refused(str(tmp_path / "gone.py"))
    assert "is no name of a Python module" in refused(foreign.put(tmp_path, "my-plug.py", ""))
    assert "a part of superft is no plug-in" in refused("trainables.attacks")
    assert "is already in use (built-in); rename the file" in refused(foreign.put(tmp_path, "sys.py", ""))


def test_a_name_of_ours_cannot_be_taken_before_it_is_looked_at(tmp_path: Path) -> None:
    """A registry finds its own modules late; a plug-in that comes first must not win."""
    path = foreign.put(tmp_path, "plug_first.py", foreign.attack("blended"))
    assert "attack 'blended' is registered twice" in refused(path)
    assert ATTACKS.get("blended").__module__ == "trainables.attacks.blended"
