"""Looks at Ray: does it start here, its token, and an address that may be stale."""

from __future__ import annotations

import os
import re
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from study.doctor.finding import Finding, Options
from study.spec.yaml_io import SpecError

OLDEST, NEXT_MAJOR = (2, 57), (3, 0)
INSTALL = "pip install 'ray[default,tune]>=2.59,<3'"
MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def look_at_ray(_: Options) -> Finding:
    """Whether Ray is installed and starts on this machine; it is ended again."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        return Finding("fail", "not installed, and a study runs its trials with it", INSTALL, {"version": None})
    facts = {"version": found}
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or not OLDEST <= (int(numbers[1]), int(numbers[2])) < NEXT_MAJOR:
        return Finding("fail", f"{found} is not of the versions that superft works with", INSTALL, facts)
    from study.cluster.connect import ray_cluster

    started = time.perf_counter()
    try:
        import ray.tune  # noqa: F401 - what a study needs of it

        with ray_cluster("local"):
            took = time.perf_counter() - started
    except ImportError as error:
        return Finding("fail", f"{found} cannot be imported: {error}", INSTALL, facts)
    except SpecError as error:
        todo = 'see "Ray does not start" in docs/faq.md'
        return Finding("fail", f"{found}: {error}", todo, facts)
    return Finding("ok", f"{found}, starts on this machine in {took:.0f} s", facts={**facts, "seconds_to_start": took})


def look_at_token(_: Options) -> Finding:
    """Whether a cluster's token would be found, and by nobody else. It is never shown."""
    mode, named = os.environ.get(MODE), os.environ.get(TOKEN_FILE, "")
    facts = {"mode": mode, "token_in_variable": bool(os.environ.get(TOKEN, "").strip()), "file": None}
    if mode is not None and mode.lower() not in ("token", "disabled"):
        return Finding(
            "fail", f"{MODE}={mode} means nothing to Ray", f"set {MODE} to token or disabled, or unset it", facts
        )
    if facts["token_in_variable"]:
        says, file = f"in {TOKEN}", None
    else:
        file = Path(named) if named else Path.home() / ".ray" / "auth_token"
        facts["file"] = str(file)
        try:
            empty = not file.read_text().strip()
        except FileNotFoundError:
            if named:
                return Finding(
                    "fail",
                    f"{TOKEN_FILE}={named} is no file",
                    f"put the cluster's token there, or unset {TOKEN_FILE}",
                    facts,
                )
            if (mode or "").lower() == "token" and os.environ.get("RAY_ADDRESS"):
                return Finding(
                    "fail",
                    f"{MODE}=token, but there is no token for the cluster of RAY_ADDRESS",
                    f"set {TOKEN} or {TOKEN_FILE}",
                    facts,
                )
            return Finding("ok", "none: Ray on this machine needs none of yours", facts=facts)
        except (OSError, UnicodeDecodeError) as error:
            return Finding("fail", f"{file} cannot be read: {error}", f"mend or remove it, or set {TOKEN}", facts)
        if empty:
            return Finding("fail", f"{file} is empty", "put the cluster's token there, or remove it", facts)
        says = f"in {file}"
        if _others_can_read(file):
            return Finding("warn", f"{says}, which other users can read", f"chmod 600 {file}", facts)
    if (mode or "").lower() == "disabled":
        return Finding(
            "warn",
            f"{says}, but {MODE}=disabled leaves it unused",
            f"unset {MODE} if the cluster asks for a token",
            facts,
        )
    return Finding("ok", says, facts=facts)


def _others_can_read(file: Path) -> bool:
    """Whether its mode and those of all folders above let everybody in."""
    folders = file.resolve().parents
    return bool(file.stat().st_mode & 0o044) and all(folder.stat().st_mode & 0o011 for folder in folders)


def look_at_address(options: Options) -> Finding:
    """Whether RAY_ADDRESS leads to a cluster: one that is stale stops every study."""
    from study.cluster.address import VARIABLE, check_answers, wanted_cluster

    address = os.environ.get(VARIABLE, "")
    facts = {"address": address or None}
    if not address:
        return Finding("ok", f"{VARIABLE} is not set: a study starts Ray on this machine", facts=facts)
    if find_spec("ray") is None or find_spec("grpc") is None:
        todo = f"install Ray, or unset {VARIABLE}"
        return Finding(
            "warn", f"{VARIABLE}={address} is set; whether a cluster answers is not known without Ray", todo, facts
        )
    try:
        cluster = wanted_cluster(None)
        if cluster is not None:
            check_answers(cluster)
    except SpecError as error:
        says, _, todo = str(error).rpartition("; ")
        return Finding("fail", says, todo, facts)
    return Finding(
        "ok", f"{VARIABLE}={address}: {'a cluster answers' if cluster else 'Ray is started here'}", facts=facts
    )
