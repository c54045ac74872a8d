"""Submits a study to a running Ray cluster: packs the code, starts `superft run` there as a job, and follows it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import study
from study.plan.jobs import make_plan
from study.record.folder import REPORT_FILE, SPEC_FILE, refuse_uri
from study.spec.plugins import as_plugins
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, dump_yaml
from trainables.plugins.parcels import files_to_send
from trainables.storage.remote import is_uri

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CODE = ("superft", "study", "search_spaces", "trainables", "pyproject.toml")
LARGEST_FILE = 2**20
LARGEST_PACKAGE = 100 * 2**20  # what the cluster's HTTP server takes
DATA = re.compile(
    r"\.(npy|npz|pt|pth|ckpt|safetensors|h5|parquet|pkl|bin|mat|zip|tar|gz|tgz|bz2|xz|png|jpe?g|ppm|bmp|jsonl|csv|db)$",
    re.IGNORECASE,
)
# A job that is stopped gets this long (seconds) to write its report; Ray's own 3 s are for less. Its trials are in the
# ledger already.
STOP_SECONDS = 60
ANSWER_SECONDS = 10
LOST_SECONDS = 120  # without an answer while following
FAILED, INTERRUPTED = 1, 130


def submit_study(spec: StudySpec, out: str | None, *, address: str, follow: bool, python: str = "python") -> int:
    """Start ``spec`` as a job of the cluster at ``address``, the HTTP address of its dashboard.

    Args:
        spec: what to run; paths in it are the cluster's.
        out: folder of the study: an absolute path that all nodes see.
        address: ``http://HOST:8265``.
        follow: print the job's output until it ends, and return its exit code; else return 0 at once.
        python: interpreter on the cluster.

    Raises:
        SpecError: one clear line; no job was started.
    """
    target = _check_paths(spec, out)
    make_plan(spec)
    client = connect(address)
    with tempfile.TemporaryDirectory(prefix="superft-submit-") as folder:
        package = Path(folder) / "superft.zip"
        write_package(Path(study.__file__).parent.parent, spec, package)
        try:
            job = client.submit_job(
                entrypoint=shlex.join([python, "-m", "study.cli", "run", SPEC_FILE, "--out", target]),
                submission_id=f"superft-{spec.name}-{uuid.uuid4().hex[:8]}",
                runtime_env={
                    "working_dir": str(package),
                    "env_vars": {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                },
                entrypoint_num_cpus=1,  # else the driver is invisible to the scheduler, beside full slots
            )
        except (RuntimeError, OSError) as error:
            raise SpecError(f"--address {address}: the job was refused: {_first_line(error)}") from error
    at = f"--address {address.rstrip('/')}"
    click.echo(f"job:     {job}")
    click.echo(f"follow:  ray job logs {at} --follow {job}")
    click.echo(f"state:   ray job status {at} {job}")
    click.echo(f"stop:    ray job stop {at} {job}   (the same submit again goes on)")
    if "RAY_AUTH_MODE" in os.environ:
        click.echo(f"         (each with RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} in front)")
    click.echo(f"report:  {target.rstrip('/')}/{REPORT_FILE}   (trials so far: superft show {target})")
    return follow_job(client, job) if follow else 0


def _check_paths(spec: StudySpec, out: str | None) -> str:
    """The study's folder; refuses paths that would mean something else on the cluster (SpecError)."""
    remedy = "give an absolute path that all nodes see, or a URI"
    if out is None:
        raise SpecError(f"--out is missing: {remedy}")
    if not out.startswith("/") and not is_uri(out):
        raise SpecError(f"--out {out} is relative, and a job's own folder is thrown away: {remedy}")
    for key, value in _texts(spec.model_dump(mode="json")):
        path = re.sub(r"^(folder|file):", "", value)
        if path != value or key in ("data_root", "store", "search.warm_start", "attack.imported.path"):
            if key == "store" and is_uri(path):
                continue
            refuse_uri(path, f"{key}: {value!r}")
            if not path.startswith("/"):
                raise SpecError(f"{key}: {value!r} is relative to this machine's folder: {remedy}")
    return out


def _texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield f"{prefix}{key}", text


def write_package(root: Path, spec: StudySpec, path: Path) -> None:
    """The code under ``root`` and the spec as a zip: the same bytes for the same content, which is uploaded once.

    Args:
        root: folder of the three packages; its .gitignore and .rayignore are respected as Ray does.
        spec: becomes study.yaml; its plug-ins that are not installed are packed too.
        path: of the zip.

    Raises:
        SpecError: data lies among the code, or the package is larger than the cluster takes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name)  # of 1980: no time stamps
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

        for file in sorted(code_files(root)):
            name, size = file.relative_to(root).as_posix(), file.stat().st_size
            if DATA.search(name) or size > LARGEST_FILE:
                raise SpecError(
                    f"{name} ({size / 2**20:.1f} MiB) lies among the code and looks like data: "
                    "move it to storage that all nodes see, or name it in .rayignore"
                )
            add(name, file.read_bytes())
        for plugin in as_plugins(spec.plugins):
            if plugin.path is not None:  # not installed here, so hardly there
                for name, content in files_to_send(plugin).items():
                    add(name, content)
        # Not to_yaml, which leaves out a database's password.
        values = spec.model_dump(mode="json")
        values["plugins"] = [item | {"path": None} for item in values["plugins"]]  # found by name beside the code
        add(SPEC_FILE, dump_yaml(values).encode())
    if path.stat().st_size > LARGEST_PACKAGE:
        raise SpecError(
            f"the code under {root} packs to {path.stat().st_size / 2**20:.0f} MiB, the cluster takes "
            f"{LARGEST_PACKAGE // 2**20}: name what is no code in .rayignore"
        )


def code_files(root: Path) -> list[Path]:
    """Files of the packages under ``root`` that no ignore file names."""
    from ray._private.runtime_env.packaging import _dir_travel

    found: list[Path] = []

    def is_other(path: Path) -> bool:
        parts = path.relative_to(root).parts
        return bool(parts) and (parts[0] not in CODE or "__pycache__" in parts)

    def keep(path: Path) -> None:
        if path.is_file():
            found.append(path)

    _dir_travel(root, [is_other], keep, include_gitignore=True, logger=logging.getLogger("superft.submit"))
    return found


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server; the token is found as Ray finds it (RAY_AUTH_TOKEN, its file).

    Raises:
        SpecError: no http address, nothing there or something else, no token or a wrong one, another version of Ray.
    """
    import requests

    if not address.startswith(("http://", "https://")):
        raise SpecError(f"--address {address!r}: give the dashboard's HTTP address, such as http://HOST:8265")
    address = address.rstrip("/")
    try:  # the client's own first request has no time limit
        answer = requests.get(f"{address}/api/version", timeout=ANSWER_SECONDS)
    except requests.RequestException as error:
        raise SpecError(
            f"--address {address}: no Ray cluster answers ({type(error).__name__}); is it up, and the tunnel "
            "(ssh -L 8265:127.0.0.1:8265 HEAD)?"
        ) from error
    if answer.status_code in (401, 403):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    elif not answer.ok or "ray_version" not in answer.text:
        raise SpecError(f"--address {address}: what answers is no Ray dashboard (HTTP {answer.status_code})")
    # Both win over the argument in Ray's client; --address was read from the first one already.
    for key in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(key, None)

    import ray
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise SpecError(
            f"--address {address}: {_first_line(error).split('. ')[0]}; the cluster's token belongs into "
            "RAY_AUTH_TOKEN, or into the file that RAY_AUTH_TOKEN_PATH names (~/.ray/auth_token)"
        ) from error
    except (RuntimeError, OSError) as error:
        raise SpecError(f"--address {address}: {_first_line(error)}") from error
    check_versions(ray.__version__, getattr(client, "_server_ray_version", None), address)
    return client


def check_versions(here: str, there: str | None, address: str) -> None:
    """Refuse a cluster of another Ray (SpecError): patch releases may differ."""
    if there is not None and here.split(".")[:2] != there.split(".")[:2]:
        raise SpecError(
            f"--address {address}: the cluster runs Ray {there}, this environment has {here}; "
            f"pip install 'ray[default,tune]=={there}' here, or submit from a node of the cluster"
        )


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Print what the job says until it ends; its exit code (130 if it was stopped)."""
    import aiohttp
    import requests

    shown, last_answer = 0, time.monotonic()

    async def tail() -> None:
        nonlocal shown
        passed = 0
        async for text in client.tail_job_logs(job):
            # From the log's start again after a lost connection.
            new = text[max(0, shown - passed) :]
            passed += len(text)
            shown = max(shown, passed)
            click.echo(new, nl=False)

    try:
        while True:
            try:
                asyncio.run(tail())
                info = client.get_job_info(job)
                last_answer = time.monotonic()
                if info.status.is_terminal():
                    # The stream may end before the last lines.
                    click.echo(client.get_job_logs(job)[shown:], nl=False)
                    break
            except (RuntimeError, OSError, aiohttp.ClientError, requests.RequestException) as error:
                if time.monotonic() - last_answer > LOST_SECONDS:
                    raise SpecError(
                        f"no answer from the cluster for {LOST_SECONDS} s ({_first_line(error)}); job {job} may go on: "
                        "see ray job status"
                    ) from error
            time.sleep(1)
    except KeyboardInterrupt:
        click.echo(f"\nno longer following; job {job} goes on", err=True)
        return INTERRUPTED
    sys.stdout.flush()
    if info.status == "STOPPED":
        click.echo(f"job {job} was stopped; the same submit again continues the study", err=True)
        return INTERRUPTED
    if info.driver_exit_code is None:  # it never ran: no room, a broken environment
        click.echo(f"job {job}: {info.status}: {_first_line(info.message)}", err=True)
        return FAILED
    return int(info.driver_exit_code)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
