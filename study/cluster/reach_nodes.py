"""Goes by ssh to every node of a cluster file, as `ray up` will, and says in a line each what would not work there.

The launcher itself tries for a quarter of an hour where ssh is refused, and says of a worker that fails nothing but to
a log on the head.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from study.spec.yaml_io import SpecError

CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
AT_ONCE = 16
# Nothing is asked, and hosts are not remembered: as the launcher calls ssh.
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "IdentitiesOnly": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS),
}
PROBLEM, VERSIONS = "superft-problem ", "superft-versions "


def check_nodes(config: Mapping[str, Any]) -> list[str]:
    """What keeps the nodes of a cluster file from starting: lines ``ADDRESS: what: remedy``; none where all is well.

    Nothing is changed on the nodes: those of the setup commands that are a `test` are run, and in place of `ray start`,
    with what stands before it on its line, the versions of Ray and Python are asked for.

    Args:
        config: of provider ``local`` and without mistakes, see `check_file`.

    Raises:
        SpecError: it names no nodes, or there is no ssh or no key here.
    """
    provider, auth = config["provider"], config["auth"]
    if "coordinator_address" in provider:
        raise SpecError("provider.coordinator_address: a coordinator hands out the nodes, so none can be visited")
    key = auth.get("ssh_private_key")
    if key is not None and not Path(key).expanduser().is_file():
        raise SpecError(f"auth.ssh_private_key: {key}: no such file here")
    head = str(provider["head_ip"])
    to_head = _ssh(auth, auth.get("ssh_proxy_command"))
    lines, versions = _visit(head, str(provider.get("external_head_ip", head)), to_head, _script(config, "head"), auth)
    if lines and versions is None:
        return lines  # from there the workers would have been reached
    # With the key that is here, through the head: the launcher copies it there.
    through = shlex.join([*to_head, "-W", "%h:%p", f"{auth['ssh_user']}@{provider.get('external_head_ip', head)}"])
    script = _script(config, "worker")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        visits = list(
            pool.map(lambda worker: _visit(worker, worker, _ssh(auth, through), script, auth), provider["worker_ips"])
        )
    for worker, (found, there) in zip(provider["worker_ips"], visits, strict=True):
        lines += found
        if versions and there and there != versions:
            lines.append(f"{worker}: {there}, but the head has {versions}: all nodes need the same")
    return lines


def _ssh(auth: Mapping[str, Any], proxy: str | None) -> list[str]:
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    options = OPTIONS if proxy is None else OPTIONS | {"ProxyCommand": proxy}
    return ["ssh", *key, *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]


def _script(config: Mapping[str, Any], kind: str) -> str:
    """What a node is asked, for bash."""
    lines = [_or_say("command -v rsync > /dev/null", "rsync is not installed")]
    if "docker" in config:  # the commands of the file are for the container, which is not there yet
        command = "podman" if config["docker"].get("use_podman") else "docker"
        return "\n".join([*lines, _or_say(f"command -v {command} > /dev/null", f"{command} is not installed")])
    for command in [*config.get("setup_commands", []), *config.get(f"{kind}_setup_commands", [])]:
        if re.match(r"test\s", command):
            lines.append(_or_say(f"said=$( ( {command}\n) 2>&1 )", f'${{said:-"failed: {_plain(command)}"}}'))
    for command in config.get(f"{kind}_start_ray_commands", []):
        if start := re.search(r"\bray start\b", command):
            before = command[: start.start()]
            lines += [
                _or_say(f"said=$( ( {before} ray --version ) 2>&1 )", "no Ray: ${said##*$'\\n'}"),
                f"python=$( ( {before} python --version ) 2>&1 )",
                f"echo \"{VERSIONS}${{said##*version }}, ${{python##*$'\\n'}}\"",
            ]
    return "\n".join(lines)


def _or_say(command: str, problem: str) -> str:
    """The command; where it fails the node has this problem, and nothing more is asked."""
    return f'{command} || {{ echo "{PROBLEM}{problem}"; exit 0; }}'


def _plain(command: str) -> str:
    return re.sub(r"[^\w ./|=-]", "", command)


def _visit(
    name: str, address: str, ssh: Sequence[str], script: str, auth: Mapping[str, Any]
) -> tuple[list[str], str | None]:
    """What is wrong on a node, and its versions; None where it was not reached."""
    user = auth["ssh_user"]
    try:
        done = subprocess.run(
            [*ssh, f"{user}@{address}", "bash --login -s"],
            input=script,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise SpecError("ssh is not installed here") from error
    except subprocess.TimeoutExpired:
        return [f"{name}: ssh: no answer for {ANSWER_SECONDS} s"], None
    if done.returncode == 255:  # ssh's own
        return [f"{name}: ssh as {user}: {_why(done.stderr, str(auth.get('ssh_private_key', 'its key')))}"], None
    said = done.stdout.splitlines()
    problems = [f"{name}: {line.removeprefix(PROBLEM)}" for line in said if line.startswith(PROBLEM)]
    versions = [line.removeprefix(VERSIONS) for line in said if line.startswith(VERSIONS)]
    return problems, f"Ray {versions[0]}" if versions else ""


def _why(stderr: str, key: str) -> str:
    said = [line.strip().rstrip(".") for line in stderr.splitlines() if not line.startswith("Warning: ")]
    lines = [line for line in said if line] or ["no connection"]
    if denied := [line for line in lines if "Permission denied" in line]:
        return f"{denied[-1].rpartition(': ')[2]}: the public half of {key} belongs into ~/.ssh/authorized_keys there"
    # Of a connection through the head the first line says why the head did not get there.
    return re.sub(r"^(ssh|channel \d+: open failed): ", "", lines[0])
