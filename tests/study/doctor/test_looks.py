"""Each look of `superft doctor` names its faults, made up at the lowest level: variables, files, torch's answers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.cluster.sockets import LONGEST_PLACE
from study.doctor import card, places, processor, ray_here, room, software, speed
from study.doctor.finding import Finding, Options
from tests.network import free_ports
from trainables.machine.cores import Cores, find_cores
from trainables.machine.memory import HostMemory, find_memory

ASKED = Options(seconds=0.2)


def faulty(finding: Finding, verdict: str, *words: str) -> None:
    """It has that verdict, says what is wrong and what to do, in one line, and its facts are JSON."""
    line = finding.line("look")
    assert finding.verdict == verdict, line
    assert finding.todo
    assert "\n" not in line
    for word in words:
        assert word in line
    json.dumps(finding.facts, allow_nan=False)


def well(finding: Finding, *words: str) -> None:
    assert (finding.verdict, finding.todo) == ("ok", ""), finding
    for word in words:
        assert word in finding.says
    json.dumps(finding.facts, allow_nan=False)


# ----------------------------------------------------------------------------------------------------------- software


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_a_python_that_is_too_old_or_too_new_is_named(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
) -> None:
    well(software.look_at_python(ASKED))
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr("platform.python_version", lambda: ".".join(map(str, version)))
    faulty(software.look_at_python(ASKED), "fail", ".".join(map(str, version)), "3.13")


def test_torch_and_torchvision_must_be_there_fit_each_other_and_be_new(monkeypatch: pytest.MonkeyPatch) -> None:
    well(software.look_at_torch(ASKED), torch.__version__.partition("+")[0])

    def broken(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(software, "import_module", broken)
    faulty(software.look_at_torch(ASKED), "fail", "torchvision", "nms does not exist", "in one command")
    monkeypatch.setattr(software, "import_module", lambda name: None)
    monkeypatch.setattr(software, "_version", lambda name: {"torch": "2.5.1+cu121"}.get(name, "0.20"))
    faulty(software.look_at_torch(ASKED), "fail", "2.5.1+cu121 is older than 2.6")
    monkeypatch.setattr(software, "_version", lambda name: None)
    faulty(software.look_at_torch(ASKED), "fail", "torch is not installed", "pip install")


# ---------------------------------------------------------------------------------------------------------- processor


@pytest.mark.parametrize(
    ("cores", "verdict", "says"),
    [
        (Cores(64, 2, None), "ok", "2 of 64 by affinity"),
        (Cores(64, 64, 2.5), "ok", "2 of 64 by a quota of 2.5 cores"),
        (Cores(8, 8, None), "ok", "all 8"),
        (Cores(8, 8, 99.0), "ok", "all 8"),
        (Cores(64, 64, 0.2), "warn", "1 of 64, of which a quota leaves 0.2"),
    ],
)
def test_cores_are_told_with_what_takes_the_others(
    monkeypatch: pytest.MonkeyPatch, cores: Cores, verdict: str, says: str
) -> None:
    monkeypatch.setattr(processor, "find_cores", lambda: cores)
    finding = processor.look_at_cores(ASKED)
    assert (finding.verdict, finding.says) == (verdict, says)
    assert bool(finding.todo) == (verdict == "warn")
    assert finding.facts["usable"] == cores.usable


def test_a_processor_without_bfloat16_is_told_and_nothing_is_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    well(processor.look_at_bfloat16(ASKED), "in hardware")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    faulty(processor.look_at_bfloat16(ASKED), "warn", "not in hardware", "nothing to mend")


# --------------------------------------------------------------------------------------------------------------- card


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of NVIDIA's driver, not there yet; no variable hides a card, and torch finds none."""
    monkeypatch.setattr(card, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(card, "DEVICE", tmp_path / "nvidiactl")
    for name in (card.VISIBLE, card.PIPES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    return tmp_path / "version"


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023\nGCC version: 12.3.0\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build\n",
    ],
)
def test_the_version_of_the_driver_is_read(driver: Path, text: str) -> None:
    assert card.driver_version() is None
    driver.write_text(text)
    assert card.driver_version() == "535.129.03"


def test_no_driver_is_no_fault_and_leaves_the_other_looks_at_cards_without_a_word(driver: Path) -> None:
    well(card.look_at_cuda(ASKED), "no NVIDIA driver")
    assert card.look_at_capture(ASKED) == card.look_at_mps(ASKED) == Finding("ok", "no GPU")


def test_a_driver_that_torch_cannot_use_is_a_problem(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1  x")

    def too_old() -> bool:
        import warnings

        warnings.warn("The NVIDIA driver on your system\nis too old (found version 11040).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    faulty(card.look_at_cuda(ASKED), "fail", "470.1", "system is too old", "CUDA 12.8")
    monkeypatch.setenv(card.VISIBLE, "")
    faulty(card.look_at_cuda(ASKED), "warn", "hides its GPUs", f"unset {card.VISIBLE}")
    monkeypatch.setattr(torch.version, "cuda", None)
    faulty(card.look_at_cuda(ASKED), "fail", "built without CUDA", "install a torch with CUDA")


@pytest.fixture
def cards(driver: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two made-up cards of 80 GB that compute; their free memory can be changed."""
    made = SimpleNamespace(free=[80 * 10**9, 80 * 10**9])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Made-up 80")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (made.free[number], 80 * 10**9))
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: ones(*size))
    return made


def test_cards_are_named_and_what_others_hold_of_them(cards: SimpleNamespace) -> None:
    well(card.look_at_cuda(ASKED), "Made-up 80 with 80.0 GB, Made-up 80", "12.8")
    cards.free[1] = 10**9
    faulty(card.look_at_cuda(ASKED), "warn", "more than half the memory of GPU 1", "nvidia-smi")


@pytest.mark.usefixtures("cards")
def test_a_card_that_does_not_compute_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*size: int, device: str) -> Any:
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(torch, "ones", fail)
    faulty(card.look_at_cuda(ASKED), "fail", "GPU 0 (Made-up 80)", "no kernel image is available for")


@pytest.mark.usefixtures("cards")
def test_capture_that_fails_or_computes_something_else_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise RuntimeError("operation not permitted when stream is capturing")

    for captured, words in ((lambda: False, "another result"), (refuse, "not permitted")):
        monkeypatch.setattr(card, "_captured_step_is_right", captured)
        faulty(card.look_at_capture(ASKED), "warn", words, "without it")
    monkeypatch.setattr(card, "_captured_step_is_right", lambda: True)
    well(card.look_at_capture(ASKED), "can be captured")


@pytest.mark.gpu
def test_a_real_card_is_looked_at() -> None:
    for look in (card.look_at_cuda, card.look_at_capture):
        assert look(ASKED).verdict == "ok"


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("mps", "modes", "pipes", "verdict", "words"),
    [
        (True, "Default", "/tmp/x", "ok", "side by side"),
        (True, "Exclusive_Process", None, "ok", "side by side"),
        (False, "Default", None, "ok", "take turns"),
        (False, "Default", "/tmp/x", "warn", "no MPS answers there"),
        (False, "Exclusive_Process", None, "fail", "nvidia-smi -c DEFAULT"),
    ],
)
def test_mps_is_asked_and_an_exclusive_card_without_it_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mps: bool, modes: str, pipes: str | None, verdict: str, words: str
) -> None:
    for name, script in ((card.MPS, f"exit {0 if mps else 1}"), ("nvidia-smi", f"echo {modes}; echo Default")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if pipes:
        monkeypatch.setenv(card.PIPES, pipes)
    finding = card.look_at_mps(ASKED)
    assert finding.verdict == verdict
    assert words in finding.line("mps")
    assert finding.facts["compute_modes"] == [modes, "Default"]


def test_a_tool_that_is_missing_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "ANSWER_SECONDS", 0.2)
    assert card._output(["no-such-tool-of-nvidia"]) is None
    assert card._output(["sleep", "30"]) is None
    assert card._output(["echo", "x"]) == "x\n"


# ---------------------------------------------------------------------------------------------------------------- Ray


def test_ray_that_is_missing_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise ray_here.PackageNotFoundError(name)

    monkeypatch.setattr(ray_here, "version", missing)
    faulty(ray_here.look_at_ray(ASKED), "fail", "not installed", "pip install 'ray")
    for version in ("2.56.9", "3.0.0", "nightly"):
        monkeypatch.setattr(ray_here, "version", lambda name, found=version: found)
        faulty(ray_here.look_at_ray(ASKED), "fail", version, "pip install 'ray")


def test_ray_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no raylet\ncame up")

    monkeypatch.setattr("ray.init", refuse)
    faulty(ray_here.look_at_ray(ASKED), "fail", "Ray does not start on this machine: no raylet came up", "docs/faq.md")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token, which everybody may look into."""
    for name in (ray_here.MODE, ray_here.TOKEN, ray_here.TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "parents", property(lambda self: ()))  # pytest's own folders are closed
    (tmp_path / ".ray").mkdir()
    return tmp_path


def write_token(file: Path, text: str = "made-up-secret", mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


def test_a_token_is_found_where_ray_looks_for_it_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    well(ray_here.look_at_token(ASKED), "none")
    write_token(home / ".ray" / "auth_token")
    found = [ray_here.look_at_token(ASKED)]
    write_token(home / "mine")
    monkeypatch.setenv(ray_here.TOKEN_FILE, str(home / "mine"))
    found.append(ray_here.look_at_token(ASKED))
    monkeypatch.setenv(ray_here.TOKEN, "made-up-secret")
    found.append(ray_here.look_at_token(ASKED))
    assert [finding.says for finding in found] == [
        f"in {home}/.ray/auth_token",
        f"in {home}/mine",
        f"in {ray_here.TOKEN}",
    ]
    assert all(finding.verdict == "ok" and "made-up-secret" not in str(finding) for finding in found)


def test_faults_of_a_token_are_told_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / ".ray" / "auth_token"
    write_token(file, mode=0o644)
    faulty(ray_here.look_at_token(ASKED), "warn", "other users can read", f"chmod 600 {file}")
    file.chmod(0o600)
    monkeypatch.setenv(ray_here.MODE, "disabled")
    faulty(ray_here.look_at_token(ASKED), "warn", "unused")
    monkeypatch.setenv(ray_here.MODE, "tokn")
    faulty(ray_here.look_at_token(ASKED), "fail", "RAY_AUTH_MODE=tokn")
    monkeypatch.setenv(ray_here.MODE, "token")
    write_token(file, " \n")
    faulty(ray_here.look_at_token(ASKED), "fail", "is empty")
    file.unlink()
    well(ray_here.look_at_token(ASKED), "none")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    faulty(ray_here.look_at_token(ASKED), "fail", "no token for the cluster")
    monkeypatch.setenv(ray_here.TOKEN_FILE, str(home / "gone"))
    faulty(ray_here.look_at_token(ASKED), "fail", "gone is no file", f"unset {ray_here.TOKEN_FILE}")


def test_a_stale_address_is_a_problem_and_without_ray_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    well(ray_here.look_at_address(ASKED), "not set")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    finding = ray_here.look_at_address(ASKED)
    faulty(finding, "fail", f"RAY_ADDRESS={address}: cannot reach a Ray cluster")
    assert finding.todo == "unset RAY_ADDRESS to run on this machine"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    well(ray_here.look_at_address(ASKED), "started here")
    monkeypatch.setattr(ray_here, "find_spec", lambda name: None)
    faulty(ray_here.look_at_address(ASKED), "warn", "not known without Ray", "unset RAY_ADDRESS")


# ------------------------------------------------------------------------------------------------------------- places


def test_a_store_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    well(places.look_at_store(ASKED), str(tmp_path / "store"))
    (tmp_path / "file").touch()
    faulty(
        places.look_at_store(Options(store=str(tmp_path / "file" / "x"))), "fail", "cannot be written", "SUPERFT_STORE"
    )
    faulty(places.look_at_store(Options(store="nonsense://bucket/x")), "fail", "nonsense")


def test_data_sets_are_found_by_their_files_and_halves_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    monkeypatch.setenv("SUPERFT_DATA", str(root))
    faulty(places.look_at_data(ASKED), "fail", f"SUPERFT_DATA={root} is no folder")
    root.mkdir()
    finding = places.look_at_data(ASKED)
    well(finding, "digits here")
    assert finding.facts["here"] == ["digits"]
    (root / "tiny-imagenet-200.zip").touch()
    (root / "train_32x32.mat").touch()
    finding = places.look_at_data(ASKED)
    faulty(finding, "warn", "svhn (no test_32x32.mat)")
    (root / "test_32x32.mat").touch()
    assert set(places.look_at_data(ASKED).facts["here"]) == {"digits", "tiny_imagenet", "svhn"}
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    faulty(places.look_at_data(ASKED), "fail", "digits", "scikit-learn")


@pytest.mark.parametrize(("free", "verdict"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_a_full_disk_is_named_with_what_lies_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, verdict: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free * 10**9))
    finding = places.look_at_disk(Options(store=str(tmp_path / "not" / "yet")))
    assert finding.verdict == verdict
    assert f"{free:.1f} GB free for working folder" in finding.says
    assert ("make room" in finding.todo) == (verdict != "ok")
    assert set(finding.facts["free_bytes"]) == {"working folder", "data", "temporary files", "store"}


def test_a_long_tmpdir_is_told_with_where_sockets_go_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    well(places.look_at_tmpdir(ASKED), f"/tmp, 4 bytes of at most {LONGEST_PLACE}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * LONGEST_PLACE)))
    faulty(places.look_at_tmpdir(ASKED), "warn", "they go to /tmp", "short path")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    faulty(places.look_at_tmpdir(ASKED), "fail", f"at most {LONGEST_PLACE} bytes")
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    faulty(places.look_at_tmpdir(ASKED), "warn", "TMPDIR=/no/such/folder cannot be used")


# --------------------------------------------------------------------------------------------------------------- room


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (HostMemory(64 * 10**9, 60 * 10**9, None), "ok", "64.0 GB; 60.0 GB"),
        (HostMemory(64 * 10**9, 60 * 10**9, 32 * 10**9), "ok", "32.0 GB of 64.0 GB by the limit"),
        (HostMemory(64 * 10**9, 3 * 10**9, None), "warn", "8 trials at once"),
        (HostMemory(64 * 10**9, 60 * 10**9, 10**9), "fail", "give the container or job more"),
        (HostMemory(64 * 10**9, 10**9, None), "fail", "end other programs"),
    ],
)
def test_memory_is_told_with_its_limit(
    monkeypatch: pytest.MonkeyPatch, found: HostMemory, verdict: str, words: str
) -> None:
    monkeypatch.setattr(room, "find_memory", lambda: found)
    monkeypatch.setattr(room, "usable_cores", lambda: 8)
    finding = room.look_at_memory(ASKED)
    assert finding.verdict == verdict
    assert words in finding.line("memory")
    monkeypatch.setattr("resource.getrlimit", lambda which: (10**9, 10**9))
    faulty(room.look_at_memory(ASKED), "warn", "ulimit -v")


def test_small_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "SHARED", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=64 * 2**20, free=60 * 2**20))
    faulty(room.look_at_shared_memory(ASKED), "warn", "0.1 GB", "--shm-size")
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=8 * 10**9, free=7 * 10**9))
    well(room.look_at_shared_memory(ASKED), "7.0 GB free of 8.0 GB")
    monkeypatch.setattr(room, "SHARED", tmp_path / "gone")
    monkeypatch.setattr(sys, "platform", "linux")
    faulty(room.look_at_shared_memory(ASKED), "warn", "gone")


@pytest.mark.parametrize(
    ("controllers", "kind", "file", "none"),
    [
        ("", "cgroup2 cgroup2 rw", "memory.max", "max"),
        ("memory", "cgroup cgroup rw,memory", "memory.limit_in_bytes", str(2**63 - 4096)),
    ],
)
def test_the_smallest_memory_limit_of_all_groups_above_counts(
    tmp_path: Path, controllers: str, kind: str, file: str, none: str
) -> None:
    (tmp_path / "cgroup").write_text(f"0:{controllers}:/job/step\n")
    (tmp_path / "mountinfo").write_text(f"31 22 0:28 / {tmp_path / 'groups'} rw - {kind}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\nHugePages_Total: 0\n")
    step = tmp_path / "groups" / "job" / "step"
    step.mkdir(parents=True)
    (step / file).write_text(f"{none}\n")
    assert find_memory(tmp_path, tmp_path / "meminfo") == HostMemory(65_536_000_000, 32_768_000_000, None)
    (step.parent / file).write_text("4000000000\n")
    found = find_memory(tmp_path, tmp_path / "meminfo")
    assert (found.limit, found.usable) == (4 * 10**9, 4 * 10**9)
    assert find_memory(tmp_path / "gone", tmp_path / "gone").machine > 10**8


def test_real_cores_and_memory_are_found() -> None:
    assert 1 <= find_cores().usable <= find_cores().machine
    assert find_memory().usable > 10**8


# -------------------------------------------------------------------------------------------------------------- speed


def made_up(share: float, threads: int | None) -> dict[str, Any]:
    speeds = {"images_per_second": 512.0, "share_of_peak": share, "matrix_peak": 4.5e11, "load": 12.0}
    return speeds | {"model": "x", "width": 64, "batch": 128, "precision": "bfloat16", "threads": threads}


def test_throughput_far_below_the_peak_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda seconds: made_up(0.41, 2))
    well(speed.look_at_throughput(ASKED), "512 images/s", "0.41 of the matrix peak", "0.45 TFLOP/s", "on one core")
    monkeypatch.setattr(speed, "measure", lambda seconds: made_up(0.05, 2))
    faulty(speed.look_at_throughput(ASKED), "warn", "load 12.0")
    monkeypatch.setattr(speed, "measure", lambda seconds: made_up(0.05, None))
    assert speed.look_at_throughput(ASKED).verdict == "ok"


def test_a_full_card_is_a_problem_and_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: str) -> Any:
        def measure(_: float) -> dict[str, Any]:
            raise RuntimeError(words)

        return measure

    monkeypatch.setattr(speed, "measure", fail("CUDA error: out of memory"))
    faulty(speed.look_at_throughput(ASKED), "fail", "no memory left", "nvidia-smi")
    monkeypatch.setattr(speed, "measure", fail("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        speed.look_at_throughput(ASKED)
