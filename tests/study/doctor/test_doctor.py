"""`superft doctor` goes to its end whatever a look does, and its exit code is the number of problems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from study.doctor import examine as module
from study.doctor import looks as all_looks
from study.doctor.examine import examine, exit_code
from study.doctor.finding import Finding, Options
from study.doctor.looks import LOOKS, Look
from tests.network import free_ports
from tests.study.commands import invoke

SERVE = "from study.doctor.worker import main; main()"
FAULTS = """
import os, signal, subprocess, time
from study.doctor.finding import Finding
from study.doctor.looks import Look

def hang(_):
    print("no answer", flush=True)
    subprocess.Popen(["sleep", "600"]).wait()

def crash(_):
    os.kill(os.getpid(), signal.SIGSEGV)

def fail(_):
    raise KeyError("a fault of ours")

def talk(_):
    print("a library says something")
    return Finding("ok", str(os.getpid()))

LOOKS = {"hang": Look(hang, 1.0), "crash": Look(crash), "fail": Look(fail), "talk": Look(talk), "again": Look(talk)}
"""


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Look]:
    """Looks that hang, crash and fail, in place of ours."""
    (tmp_path / "faulty_looks.py").write_text(FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    start = "import study.doctor.looks, faulty_looks; study.doctor.looks.LOOKS = faulty_looks.LOOKS\n"
    monkeypatch.setattr(module, "WORKER", ("-P", "-c", f"{start}{SERVE}"))
    import faulty_looks  # type: ignore[import-not-found]

    looks: Mapping[str, Look] = faulty_looks.LOOKS
    return looks


@pytest.mark.timeout(120)
def test_a_look_that_hangs_crashes_or_fails_is_a_problem_and_the_others_are_taken(faults: Mapping[str, Look]) -> None:
    started = time.monotonic()
    found = dict(examine(Options(), faults))
    assert time.monotonic() - started < 60
    assert [finding.verdict for finding in found.values()] == ["fail", "fail", "fail", "ok", "ok"]
    assert "gave no answer within 1 s" in found["hang"].says
    assert "signal 11 (SIGSEGV)" in found["crash"].says
    assert "KeyError: 'a fault of ours'" in found["fail"].says
    assert found["talk"].says == found["again"].says  # one process serves all that go well
    with pytest.raises(ProcessLookupError):  # and it has ended
        os.kill(int(found["talk"].says), 0)


@pytest.mark.timeout(120)
def test_what_needs_a_look_that_failed_is_left_out_with_what_needs_that(faults: Mapping[str, Look]) -> None:
    first = faults["fail"]
    looks = {
        "fail": first,
        "talk": Look(faults["talk"].take, needs="fail"),
        "again": Look(faults["again"].take, needs="talk"),
    }
    found = dict(examine(Options(), looks))
    assert [finding.verdict for finding in found.values()] == ["fail", "warn", "warn"]
    assert found["again"].line("again") == "warn again: not looked at, because of talk; mend talk first"


@pytest.mark.parametrize(("problems", "code"), [(0, 0), (3, 3), (125, 125), (126, 125), (1000, 125)])
def test_the_exit_code_is_the_number_of_problems(problems: int, code: int) -> None:
    assert exit_code(problems) == code


def test_every_look_needs_one_that_comes_before_it_and_has_a_time_limit() -> None:
    names = list(LOOKS)
    assert len(names) >= 16
    for number, (name, look) in enumerate(LOOKS.items()):
        assert look.needs is None or look.needs in names[:number], name
        assert 0 < look.seconds <= 120


def pretend(monkeypatch: pytest.MonkeyPatch, *verdicts: str) -> None:
    def found(options: Options) -> Iterator[tuple[str, Finding]]:
        for number, verdict in enumerate(verdicts):
            yield f"look {number}", Finding(verdict, "so", "" if verdict == "ok" else "do that")  # type: ignore[arg-type]

    monkeypatch.setattr(module, "examine", found)


def test_people_read_a_line_for_each_look_and_shells_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "ok", "warn", "fail", "fail")
    result = invoke("doctor")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "ok   look 0: so",
        "warn look 1: so; do that",
        "FAIL look 2: so; do that",
        "FAIL look 3: so; do that",
        "problems: 2, warnings: 1",
    ]
    pretend(monkeypatch, "ok", "warn")
    assert invoke("doctor", "--json").exit_code == 0
    assert json.loads(invoke("doctor", "--json").stdout) == {
        "problems": 0,
        "warnings": 1,
        "looks": {
            "look 0": {"verdict": "ok", "says": "so", "todo": "", "facts": {}},
            "look 1": {"verdict": "warn", "says": "so", "todo": "do that", "facts": {}},
        },
    }


@pytest.mark.timeout(600)
def test_the_command_on_this_machine_tells_a_stale_address_and_a_broken_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "study.cli",
            "doctor",
            "--json",
            "--seconds",
            "0.2",
            "--store",
            str(tmp_path / "file" / "x"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": address, "HOME": str(tmp_path)},
        timeout=500,
        check=False,
    )
    found = json.loads(ended.stdout)
    looks = found["looks"]
    assert list(looks) == list(all_looks.LOOKS)
    failed = {name for name, look in looks.items() if look["verdict"] == "fail"}
    assert {"address", "store"} <= failed
    assert ended.returncode == found["problems"] == len(failed)
    assert address in looks["address"]["says"]
    assert looks["ray"]["verdict"] == "ok", looks["ray"]
    facts = looks["throughput"]["facts"]
    assert facts["images_per_second"] > 0
    share = facts["images_per_second"] * facts["operations_per_image"] / facts["matrix_peak"]
    assert facts["share_of_peak"] == pytest.approx(share)


def test_without_ray_it_is_one_problem_and_everything_else_is_looked_at(tmp_path: Path) -> None:
    """Ray is hidden by a finder that knows no module and no distribution of that name."""
    hide = (
        "import importlib.metadata as m, sys; sys.modules['ray'] = None; real = m.distribution\n"
        "def without(name):\n    if name == 'ray': raise m.PackageNotFoundError(name)\n    return real(name)\n"
        "m.distribution = without\n"
    )
    program = (
        f"{hide}import study.doctor.examine as e, study.doctor.looks as l\n"
        f"e.WORKER = ('-P', '-c', {hide + SERVE!r})\n"
        "from study.doctor.finding import Options\n"
        "names = ('python', 'ray', 'token', 'address', 'tmpdir', 'memory')\n"
        "print([(n, f.verdict) for n, f in e.examine(Options(), {n: l.LOOKS[n] for n in names})])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stderr
    assert "('ray', 'fail')" in ended.stdout
    assert ended.stdout.count("fail") == 1
