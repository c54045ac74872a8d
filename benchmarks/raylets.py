"""A Ray cluster of this machine's own processes: a head without slots, and nodes that can be killed and added."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

STORE_BYTES = 80 * 1024**2  # of each node; Ray takes no less


class Raylets:
    """The cluster; each node at a loopback address of its own, which no later node gets again."""

    def __init__(self, temporary: str, cpus: int, gpus: int = 0) -> None:
        from ray.cluster_utils import Cluster  # here: it imports Ray, which takes seconds

        self._common: dict[str, Any] = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._node: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
        # Not 127.0.0.1, which Ray would take for the host's outer address.
        head = {**self._common, "num_cpus": 0, "node_ip_address": "127.0.0.2", "temp_dir": f"{temporary}/ray"}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self._added = 2

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        """One more node."""
        self._added += 1
        self.nodes.append(self.cluster.add_node(**self._node, **self._common, node_ip_address=f"127.0.0.{self._added}"))

    def kill(self, node: Any) -> None:
        """A node with its workers, at once and without a word, as when the power fails."""
        self.nodes.remove(node)
        for number in (_raylet(node), *_children(_raylet(node))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def actors(self) -> list[int]:
        """Processes of all nodes in which trials run."""
        return [number for node in self.nodes for number in _children(_raylet(node)) if "Trainable" in _name(number)]


@contextlib.contextmanager
def raylets(count: int, cpus: int, gpus: int = 0) -> Iterator[Raylets]:
    """A cluster of so many nodes, each of so many CPUs and made-up GPUs; gone in the end."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="r", ignore_cleanup_errors=True) as temporary,
        # RAY_TMPDIR: where Ray notes the cluster that `auto` means; no other program's is to be overwritten.
        mock.patch.dict(os.environ, {"RAY_TMPDIR": temporary}),
    ):
        cluster = Raylets(temporary, cpus, gpus)
        try:
            for _ in range(count):
                cluster.add()
            cluster.cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _children(number: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _name(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text().strip("\0 ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
