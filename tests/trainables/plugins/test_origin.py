"""Claims of trainables.plugins.origin: edited code is other code, and a row says whose code it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import foreign
from tests.toy import toy_spec
from trainables.attacks.base import ATTACKS
from trainables.data.images import Dataset
from trainables.defenses.base import DEFENSES
from trainables.models.build import MODELS
from trainables.plugins.load import load
from trainables.plugins.origin import origin, ships, used

pytestmark = pytest.mark.usefixtures("_as_before")


def test_what_ships_has_no_origin() -> None:
    for registry in (ATTACKS, DEFENSES, MODELS):
        strangers = [n for n in registry.names() if not ships(registry, n) or origin(registry, n) is not None]
        assert strangers == []
    assert used([(ATTACKS, "badnets"), (DEFENSES, "none")]) == ""


def test_a_row_names_each_plug_in_once_with_its_version(tmp_path: Path) -> None:
    text = foreign.attack("corner_f") + foreign.defense("scaled_f")
    (plugin,) = load([foreign.put(tmp_path, "plug_row.py", text)])
    assert used([(ATTACKS, "corner_f"), (DEFENSES, "scaled_f"), (MODELS, "resnet18")]) == str(plugin)


def key_of(folder: Path, module: str, toy: Dataset, *, attack: str = "", model: str = "", helper: str = "") -> str:
    """Victim's key when the plug-in has this source, loaded as a new process would."""
    foreign.put(folder, f"{module}/__init__.py", f"from {module} import attack, model\n")
    foreign.put(
        folder, f"{module}/attack.py", f"from {module}.helper import X\n" + foreign.attack(f"{module}_a") + attack
    )
    foreign.put(folder, f"{module}/model.py", foreign.model(f"{module}_m") + model)
    foreign.put(folder, f"{module}/helper.py", f"X = 1\n{helper}")
    foreign.put(folder, f"{module}/figure.py", f"# {attack}")  # imported by neither
    load([str(folder / module)])
    spec = dataclasses.replace(toy_spec("badnets"), attack=f"{module}_a", model=f"{module}_m")
    return spec.name(toy)


CHANGES = ({}, {"attack": "# edited"}, {"model": "# edited"}, {"helper": "Y = 2"})


@pytest.mark.parametrize("change", CHANGES, ids=["nothing", "attack", "model", "what the attack imports"])
def test_edited_code_of_a_plug_in_is_another_victim(
    change: dict[str, str], tmp_path: Path, toy: Dataset, request: pytest.FixtureRequest
) -> None:
    keys = []
    for number, edit in enumerate(({}, change)):
        with_fresh = request.getfixturevalue("_forget")
        with_fresh()
        keys.append(key_of(tmp_path / str(number), "plug_edit", toy, **edit))
    assert (keys[0] == keys[1]) == (not change)


@pytest.fixture
def _forget(_as_before: None) -> object:
    """Forgets a plug-in, as a new process has not heard of it yet."""
    import sys

    from trainables.plugins import load as loading
    from trainables.plugins import origin as origins
    from trainables.registry import Registry

    def forget() -> None:
        for registry in Registry.all():
            registry.forget("plug_edit")
        for name in [name for name in sys.modules if name.partition(".")[0] == "plug_edit"]:
            del sys.modules[name]
        loading._loaded.pop("plug_edit", None)
        origins._source_of.cache_clear()

    return forget
