"""Claims of trainables.plugins.parcels: a worker gets the driver's code, or says that it has other code."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests import foreign
from trainables.plugins import parcels
from trainables.plugins.load import load
from trainables.plugins.modules import PluginError
from trainables.plugins.parcels import packed, unpack

pytestmark = pytest.mark.usefixtures("_as_before")

WORKER = """
import pickle, sys
from trainables.attacks.base import ATTACKS
from trainables.plugins.load import loaded
from trainables.plugins.parcels import unpack
unpack(pickle.load(open(sys.argv[1], "rb")))
print(ATTACKS.get("corner_p").__module__, *loaded())
"""


def test_a_process_without_the_file_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.put(tmp_path, "plug_sent/__init__.py", "from plug_sent import inner\n")
    foreign.put(tmp_path, "plug_sent/inner.py", foreign.attack("corner_p"))
    plugins = load([str(tmp_path / "plug_sent")])
    parcel = tmp_path / "parcel"
    parcel.write_bytes(pickle.dumps(packed(plugins)))
    (tmp_path / "plug_sent").rename(tmp_path / "gone")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", WORKER, str(parcel)]
    for _ in range(2):  # the second one finds the files of the first
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.stdout.split() == ["plug_sent.inner", *str(plugins[0]).split()], ran.stderr
    (home,) = tmp_path.glob("superft-plugins-*")
    assert len(list(home.iterdir())) == 1
    assert home.stat().st_mode & 0o077 == 0


def test_an_installed_plug_in_of_another_version_is_refused(tmp_path: Path) -> None:
    (plugin,) = load([foreign.put(tmp_path, "plug_other.py", foreign.attack("corner_q"))])
    there = dataclasses.replace(plugin, version="2.0", source="0" * 12, path=None)
    with pytest.raises(PluginError, match=r"the driver has plug_other 2\.0 and this node plug_other unversioned"):
        unpack(packed([there]))


def test_a_plug_in_too_large_to_be_sent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "LARGEST", 100)
    plugins = load([foreign.put(tmp_path, "plug_large.py", foreign.attack("corner_r"))])
    with pytest.raises(PluginError, match=r"plug-in plug_large: .* too much to send"):
        packed(plugins)
