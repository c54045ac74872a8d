"""The Dockerfile: it copies what an installation needs and nothing else, and what it installs works by itself."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.study.processes import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("search_spaces", "study", "superft", "trainables")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in their order: the word and what follows, lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def arguments() -> dict[str, str]:
    """The build arguments with their defaults."""
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")


def in_the_context(path: Path) -> bool:
    """Whether .dockerignore lets a file of the checkout through: the last pattern that fits decides."""
    name, kept = path.relative_to(ROOT).as_posix(), True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").replace("**/", "*")
            above = [name, *(parent.as_posix() for parent in Path(name).parents)]
            if any(fnmatch.fnmatchcase(f"/{item}" if pattern[0] == "*" else item, pattern) for item in above):
                kept = line.startswith("!")
    return kept


def copy_all(target: Path) -> None:
    """What COPY does: files of the context alone."""
    for word, rest in instructions():
        if word == "COPY":
            *sources, to = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), f"COPY {source}: not in the repository"
                into = target / (source if to == "./" else to)
                files = [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*")
                for file in filter(in_the_context, files):
                    if file.is_file():
                        place = into / file.relative_to(ROOT / source)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(file, place)


def pip_steps() -> list[str]:
    return [rest for word, rest in instructions() if word == "RUN" and rest.startswith("pip ")]


def run_step(step: str, **changed: str) -> list[str]:
    """The words of a step, as the shell that Docker starts would pass them, with build arguments of one's own."""
    echo = "pip() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }; "
    said = subprocess.run(
        ["sh", "-ec", echo + step], env=os.environ | arguments() | changed, capture_output=True, text=True, check=True
    )
    words = json.loads(said.stdout)
    assert isinstance(words, list)
    return words


def test_the_instructions_are_ones_that_docker_knows_and_every_step_is_a_command() -> None:
    assert [word for word, _ in instructions()][:2] == ["ARG", "FROM"]
    assert {word for word, _ in instructions()} == {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "CMD"}
    for word, rest in instructions():
        if word == "RUN":
            assert subprocess.run(["sh", "-nc", rest], check=False).returncode == 0, rest
        if word == "CMD":
            assert json.loads(rest)[0] == "superft"


def test_the_base_has_a_python_that_the_package_takes_and_comes_from_where_everybody_looks() -> None:
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", arguments()["BASE"])
    assert version is not None
    needed = Requirement(f"python{PYPROJECT['project']['requires-python']}")
    assert needed.specifier.contains(version.group(1))


def test_what_is_copied_is_the_code_and_what_the_installation_reads(tmp_path: Path) -> None:
    copy_all(tmp_path)
    project = PYPROJECT["project"]
    assert {item.name for item in tmp_path.iterdir()} == {
        *PACKAGES, "pyproject.toml", project["readme"], *project["license-files"]
    }  # fmt: skip
    found = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(pattern.removesuffix("*") for pattern in found) == sorted(PACKAGES)
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    copied = {path.relative_to(tmp_path).as_posix() for name in PACKAGES for path in (tmp_path / name).rglob("*.*")}
    assert set(tracked.stdout.splitlines()) <= copied
    assert not [name for name in copied if "__pycache__" in name]


@pytest.mark.parametrize("path", ["runs/one/trials.jsonl", ".git/config", ".venv/bin/python", "data/cifar10/a.bin"])
def test_data_studies_and_history_stay_out_of_the_context(path: str) -> None:
    assert not in_the_context(ROOT / path)


def test_one_argument_of_the_build_makes_the_image_with_cuda_or_without() -> None:
    torch, ray, ours = pip_steps()
    assert run_step(torch) == ["install", "--no-cache-dir", "torch", "torchvision"]
    without = run_step(torch, TORCH_INDEX="https://example.org/cpu")
    assert without == ["install", "--no-cache-dir", "--index-url", "https://example.org/cpu", "torch", "torchvision"]
    assert run_step(ours)[-1] == "."
    assert run_step(ours, EXTRAS="[s3,postgres]")[-1] == ".[s3,postgres]"
    assert {"s3", "postgres"} <= set(PYPROJECT["project"]["optional-dependencies"])
    (needed,) = (item for item in map(Requirement, PYPROJECT["project"]["dependencies"]) if item.name == "ray")
    pinned = Requirement(run_step(ray)[-1])
    assert pinned.extras == needed.extras
    assert needed.specifier.contains(arguments()["RAY"])


def test_the_rays_of_the_image_and_of_the_rayjob_are_one() -> None:
    job = yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == arguments()["RAY"]


@pytest.mark.slow
def test_what_is_copied_installs_and_runs_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """The last step, in a bare environment; what the steps before it bring (gigabytes) is lent by this one."""
    copy_all(tmp_path / "code")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    # The setuptools that venv brings on Python 3.11 is older than the project needs; the lent one is not.
    subprocess.run([str(environment / "bin" / "pip"), "--quiet", "uninstall", "--yes", "setuptools"], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # Not as a .pth file, whose own .pth files would bring this checkout along.
    lent = tmp_path / "lent"
    lent.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "superft" not in item.name and item.suffix != ".pth" and item.name not in ("pip", *PACKAGES):
            (lent / item.name).symlink_to(item)
    (site / "lent.pth").write_text(f"{lent}\n")
    called = {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    built = subprocess.run(
        ["sh", "-ec", pip_steps()[-1]],
        env=called | arguments() | {"PIP_NO_BUILD_ISOLATION": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        cwd=tmp_path / "code",
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for command in ("superft list defenses", "superft list recipes", "superft plan quickstart", "superft --help"):
        ran = subprocess.run(
            shlex.split(command), env=called, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stdout
    place = [str(environment / "bin" / "python"), "-c", "import study; print(study.__file__)"]
    said = subprocess.run(place, env=called, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(said.strip()).is_relative_to(site), "the checkout was used, not what was installed"


@pytest.mark.slow
def test_docker_builds_the_image_and_superft_runs_in_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("no Docker daemon answers")
    subprocess.run([docker, "build", "--quiet", "--tag", "superft:test", str(ROOT)], check=True, timeout=3000)
    ran = subprocess.run([docker, "run", "--rm", "superft:test", "superft", "plan", "quickstart"], check=False)
    assert ran.returncode == 0
