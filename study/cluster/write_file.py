"""Writes a site's cluster.yaml: the shipped file, its comments included, with what is marked CHANGE filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from study.cluster.check_file import check_cluster
from study.spec.yaml_io import SpecError, parse_yaml

SHIPPED = Path(__file__).parents[2] / "cluster.yaml"
SHIPPED_SHARED = "/shared/superft"
ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")
USER = re.compile(r"[A-Za-z_][\w.-]*")
# These stand unquoted in commands of a shell, also on the nodes.
PATH = re.compile(r"/[\w./-]*[\w-]")


@dataclass(frozen=True)
class Site:
    """What a site says about itself.

    Args:
        head: the head's address.
        workers: the workers' addresses; empty: the head alone, which then runs the trials.
        gpus: GPUs of every worker.
        shared: the folder that all nodes see under this path.
        user: that ssh logs in as.
        key: its private key, as ssh finds it here.
    """

    head: str
    workers: Sequence[str]
    gpus: int
    shared: str
    user: str
    key: str


def site_file(site: Site, shipped: str) -> str:
    """The text ``shipped`` of cluster.yaml with the site's values in it.

    Raises:
        SpecError: a value cannot stand in such a file, ``shipped`` is not the file that this knows, or what came out
            has a mistake that `superft check-cluster` finds.
    """
    _check_values(site)
    workers = "".join(f"\n    - {worker}" for worker in site.workers) or " []"
    gpus_of_head = 0 if site.workers else site.gpus
    text = shipped
    # Each pattern is there once: in another file than the shipped one a value would be lost in silence.
    for pattern, filled in (
        (r"  head_ip: \S+ +# CHANGE.*", f"  head_ip: {site.head}"),
        (r"  worker_ips: +# CHANGE.*(\n    - .*)+", f"  worker_ips:{workers}"),
        (r"  ssh_user: \S+ +# CHANGE:", f"  ssh_user: {site.user}  #"),
        (r"  ssh_private_key: \S+ +# CHANGE", f"  ssh_private_key: {site.key}"),
        (r"--dashboard-port=8265 --num-gpus=0", f"--dashboard-port=8265 --num-gpus={gpus_of_head}"),
        (r"RAY_HEAD_IP:6379 --num-gpus=8", f"RAY_HEAD_IP:6379 --num-gpus={site.gpus}"),
        (r"  # CHANGE --num-gpus: a DGX A100 has 8\. ", "  # "),
        (r" CHANGE /shared/superft everywhere below:\n# an", "\n# It is an"),
    ):
        text, times = re.subn(pattern, lambda _, filled=filled: filled, text)  # type: ignore[misc]
        if times != 1:
            raise SpecError(
                f"the file to fill in holds {times} times {pattern!r}, must be once: take the shipped cluster.yaml"
            )
    text = text.replace(SHIPPED_SHARED, site.shared)
    config = parse_yaml(text, "the written file")
    found = check_cluster(config)
    if problems := [*found.mistakes, *found.notes]:
        raise SpecError("; ".join(problems))
    return text


def _check_values(site: Site) -> None:
    address = (ADDRESS, "an address or a host's name")
    path = (PATH, "an absolute path of letters, digits and . _ - /")
    for option, value, (form, what) in (
        ("--head", site.head, address),
        *(("--workers", worker, address) for worker in site.workers),
        ("--shared", site.shared, path),
        ("--user", site.user, (USER, "a user's name")),
        ("--key", site.key.removeprefix("~"), path),
    ):
        if not form.fullmatch(value):
            raise SpecError(f"{option}: {value!r}: must be {what}")


def write_site_file(site: Site, out: Path, shipped: Path = SHIPPED) -> None:
    """Write the site's file to ``out``, which must not be there yet.

    Raises:
        SpecError: see `site_file`; or a file cannot be read or written.
    """
    try:
        text = site_file(site, shipped.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read {shipped} ({error.strerror}): it is in a checkout of superft") from error
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SpecError(f"--out {out}: is there already") from error
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written: {error.strerror}") from error
