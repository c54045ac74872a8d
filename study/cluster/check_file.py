"""Finds, in a file for `ray up`, the mistakes that Ray's schema lets pass and that show only as missing nodes."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.spec.yaml_io import SpecError, parse_yaml
from trainables.registry import nearest

# What the on-premise provider reads (ray.autoscaler._private.local); Ray's schema takes any key there.
PROVIDER_KEYS = (
    "type",
    "head_ip",
    "worker_ips",
    "external_head_ip",
    "use_external_head_ip",
    "use_internal_ips",
    "coordinator_address",
    "disable_node_updaters",
)
BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # where the launcher leaves the file on the head
DEFAULT_PORT = 6379
AUTOSCALER = "RAY_enable_autoscaler_v2"  # 1 is what the launcher sets since Ray 2.50; a node's own line wins
PLACEHOLDER = re.compile(r"<[A-Za-z][\w.-]*>|\bCHANGE_?ME\b|\bYOUR_\w+|\bTODO\b|\bWORKER_NODE_\d+\w*")
# RFC 5737: addresses for examples, which belong to nobody.
EXAMPLES = [ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Findings:
    """Lines ``key: value: remedy``: mistakes, and notes on what may be meant."""

    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_cluster_file(path: Path) -> Findings:
    """What is wrong with the cluster file at ``path`` (SpecError as `read_cluster_file`)."""
    return check_cluster(read_cluster_file(path))


def read_cluster_file(path: Path) -> dict[str, Any]:
    """The content of the cluster file at ``path``.

    Raises:
        SpecError: it cannot be read, or is no mapping.
    """
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise SpecError(f"{path}: a cluster file is a mapping of keys, got {type(config).__name__}")
    return config


def check_cluster(config: Mapping[str, Any]) -> Findings:
    """What is wrong with a cluster configuration of Ray's launcher, provider ``local``."""
    found = Findings()
    types_fit = _check_schema(config, found)
    for key, value in _texts(config):
        if hit := PLACEHOLDER.search(value):
            found.mistakes.append(f"{key}: {hit.group()!r} is a placeholder: write the site's own value")
    if types_fit:
        _check_provider(config, found)
        _check_docker(config, found)
        _check_commands(config, found)
    return found


def _check_schema(config: Mapping[str, Any], found: Findings) -> bool:
    """Ray's own schema, unknown keys in our words; whether all types are right, so that values can be looked at."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    # The launcher takes this one out before it looks at the schema.
    schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}
    types_fit = True
    for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(config), key=lambda item: list(item.path)):
        above = ".".join(str(part) for part in error.path)
        if error.validator == "additionalProperties":
            known = list(error.schema["properties"])
            for key in error.instance:
                if key not in known:
                    name = f"{above}.{key}" if above else str(key)
                    found.mistakes.append(f"unknown key {name!r}: {nearest(str(key), known)}")
        else:
            types_fit = False
            found.mistakes.append(f"{above or 'the file'}: {' '.join(error.message.split())[:200]}")
    return types_fit


def _check_provider(config: Mapping[str, Any], found: Findings) -> None:
    wrong, provider = found.mistakes, config["provider"]
    if provider["type"] != "local":
        wrong.append(f"provider.type: {provider['type']!r}: only on-premise clusters (local) are checked here")
        return
    wrong += [
        f"unknown key 'provider.{key}': {nearest(str(key), PROVIDER_KEYS)}"
        for key in provider
        if key not in PROVIDER_KEYS
    ]
    wrong += [
        f"{key}: not for on-premise clusters: what a node has is said in its `ray start`"
        for key in ("available_node_types", "head_node_type")
        if key in config
    ]
    if "ssh_user" not in config.get("auth", {}):
        wrong.append("auth.ssh_user: missing: name the user that ssh logs in as")
    if "coordinator_address" in provider:
        if "max_workers" not in config:
            wrong.append("max_workers: missing: a coordinator must be told how many nodes to hand out")
        return
    missing = [key for key in ("head_ip", "worker_ips") if key not in provider]
    if missing:
        wrong += [f"provider.{key}: missing: needed beside the other, also if it is []" for key in missing]
        return
    head, workers = provider["head_ip"], provider["worker_ips"]
    wrong += [f"provider.worker_ips: {item!r} is no address" for item in workers if not isinstance(item, str)]
    wrong += [f"provider.worker_ips: {item} is there twice" for item in _repeated(workers)]
    if head in workers:
        wrong.append(f"provider.worker_ips: {head} is the head already: take it out; the head runs trials too")
    for key, address in [("head_ip", head), *(("worker_ips", item) for item in workers)]:
        if _is_example(address):
            found.notes.append(f"provider.{key}: {address} is an address for examples; write the node's own")
    most, least = config.get("max_workers", len(workers)), config.get("min_workers", len(workers))
    if min(least, len(workers)) > most:
        wrong.append(
            f"max_workers: {most} is below the {min(least, len(workers))} of min_workers (unset: all of worker_ips): "
            "set both, or neither"
        )
    elif most != len(workers):
        found.notes.append(f"max_workers: {most}, but there are {len(workers)} worker_ips")


def _check_docker(config: Mapping[str, Any], found: Findings) -> None:
    docker = config.get("docker", {})
    has_image = "image" in docker or {"head_image", "worker_image"} <= docker.keys()
    if docker and not docker.get("container_name"):
        found.mistakes.append("docker.container_name: missing: without it Ray starts beside the container")
    if docker and not has_image:
        found.mistakes.append("docker.image: missing: name it, or both head_image and worker_image")


def _check_commands(config: Mapping[str, Any], found: Findings) -> None:
    wrong, provider = found.mistakes, config["provider"]
    key = "head_start_ray_commands"
    port = DEFAULT_PORT
    for start in _starts(config, key, found):
        if not start["head"]:
            wrong.append(f"{key}: `ray start` without --head: the head must start the cluster")
        config_file = start["autoscaling_config"]
        if Path(config_file or "").name != Path(BOOTSTRAP).name:
            what = "no --autoscaling-config" if config_file is None else f"--autoscaling-config={config_file}"
            wrong.append(f"{key}: {what}: without --autoscaling-config={BOOTSTRAP} no worker is ever started")
        if config["provider"].get("worker_ips") and start["environment"].get(AUTOSCALER) != "0":
            wrong.append(
                f"{key}: no {AUTOSCALER}=0: Ray's newer autoscaler counts the head as a worker, so that one of "
                f"worker_ips is never started; write {AUTOSCALER}=0 before `ray start`"
            )
        host = start["dashboard_host"]
        if host not in LOOPBACK:
            wrong.append(
                f"{key}: --dashboard-host={host} opens dashboard and job server to the network: "
                "use 127.0.0.1 and ssh -L 8265:127.0.0.1:8265"
            )
        if start["include_dashboard"] is False:
            wrong.append(f"{key}: --include-dashboard=false: jobs are submitted through the dashboard; leave it on")
        port = int(start["port"] or DEFAULT_PORT)
    key = "worker_start_ray_commands"
    head = provider.get("head_ip")
    for start in _starts(config, key, found):
        address = start["address"]
        if start["head"]:
            wrong.append(
                f"{key}: --head: every worker would be a cluster of its own; use --address=$RAY_HEAD_IP:{port}"
            )
        elif address not in {f"{host}:{port}" for host in ("$RAY_HEAD_IP", "${RAY_HEAD_IP}", head)}:
            what = "no --address" if address is None else f"--address={address}"
            wrong.append(f"{key}: {what}: workers find the head at --address=$RAY_HEAD_IP:{port}")


def _starts(config: Mapping[str, Any], key: str, found: Findings) -> Iterator[Mapping[str, Any]]:
    """The options of each `ray start` in the commands under ``key``, checked for what holds on every node.

    With the variables that are set on its line, as ``environment``.
    """
    if key not in config:
        found.mistakes.append(f"{key}: missing: Ray's default starts without token authentication; see cluster.yaml")
        return
    count = 0
    options = " ".join(str(item) for item in config.get("docker", {}).get("run_options", []))
    for line in config[key]:
        try:
            commands = list(_commands(line))
        except ValueError as error:
            found.mistakes.append(f"{key}: {' '.join(line.split())!r}: {error}")
            return
        for words, environment in commands:
            if [Path(words[0]).name, *words[1:2]] != ["ray", "start"]:
                continue
            count += 1
            mode = environment.get("RAY_AUTH_MODE", "token" if "RAY_AUTH_MODE=token" in options else None)
            if mode != "token":
                what = "no RAY_AUTH_MODE=token" if mode is None else f"RAY_AUTH_MODE={mode}"
                found.mistakes.append(
                    f"{key}: {what}: whoever reaches the ports could run code here; "
                    "write RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE before `ray start`"
                )
            read = _read_start(words[2:], key, found)
            if read is not None:
                if read["block"]:
                    found.mistakes.append(f"{key}: --block: the launcher would wait for ever; leave it out")
                yield read | {"environment": environment}
    if count != 1:
        found.mistakes.append(f"{key}: {count} times `ray start`, must be once")


def _commands(line: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The simple commands of a shell line, each with the variables that were set for it on that line (ValueError)."""
    lexer = shlex.shlex(line.replace("\n", " ; "), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, ""
    words = list(lexer)
    exported: dict[str, str] = {}
    while words:
        end = next((place for place, word in enumerate(words) if not word.strip(";&|")), len(words))
        command, words = words[:end], words[end + 1 :]
        own: dict[str, str] = {}
        exports = command[:1] == ["export"]
        while command and (command[0] in ("export", "exec", "env", "nohup") or re.match(r"[A-Za-z_]\w*=", command[0])):
            name, sign, value = command.pop(0).partition("=")
            if sign:
                own[name] = value
        if exports:
            exported |= own
        if command:
            yield command, exported | own


def _read_start(arguments: list[str], key: str, found: Findings) -> dict[str, Any] | None:
    """The options of a `ray start` as Ray's own command reads them."""
    import click
    from ray.scripts.scripts import start

    try:
        return dict(start.make_context("ray start", list(arguments)).params)
    except click.UsageError as error:
        # A number that the node's shell fills in is not ours to judge.
        if isinstance(error, click.NoSuchOption) or "$" not in error.format_message():
            found.mistakes.append(f"{key}: ray start: {' '.join(error.format_message().split())}")
        return None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a configuration, with the keys that lead to them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _repeated(items: list[Any]) -> list[Any]:
    return [item for number, item in enumerate(items) if item in items[:number]]


def _is_example(address: Any) -> bool:
    try:
        parsed = ipaddress.ip_address(str(address))
    except ValueError:
        return re.search(r"(^|\.)example(\.(com|net|org))?$", str(address)) is not None
    return any(parsed in network for network in EXAMPLES)
