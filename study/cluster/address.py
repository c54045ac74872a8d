"""Which Ray cluster a study shall use, and whether one answers there: Ray itself would try for many minutes."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from study.spec.yaml_io import SpecError
from trainables.storage.messages import one_line

CONNECT_SECONDS = 10.0
VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True)
class Cluster:
    """A cluster's address, and ``called``: how a message names it, with whoever asked for it."""

    address: str
    called: str
    hint: str = ""

    def error(self, why: object, *, hint: str = "") -> SpecError:
        """That it cannot be reached, in one line."""
        hints = "".join(f"; {item}" for item in (self.hint, hint) if item)
        return SpecError(f"{self.called}: cannot reach a Ray cluster: {why}{hints}")


def wanted_cluster(address: str | None) -> Cluster | None:
    """The cluster of ``--address``, else of the variable RAY_ADDRESS, as in Ray; None: start Ray on this machine.

    Args:
        address: as given: HOST:PORT, ``ray://HOST:PORT``, ``local``, or ``auto`` for the last cluster of this machine.

    Raises:
        SpecError: ``auto`` finds no cluster, or RAY_ADDRESS holds a dashboard's address.
    """
    inherited = os.environ.get(VARIABLE, "")  # Ray takes an empty one for none, too
    if address is not None and not (address == "auto" and inherited):
        cluster = Cluster(address, f"--address {address}")
    elif inherited:
        cluster = Cluster(inherited, f"{VARIABLE}={inherited}", f"unset {VARIABLE} to run on this machine")
    else:
        return None
    if cluster.address == "local":
        return None
    if cluster.address.startswith(("http://", "https://")):
        why = "this is an address for superft submit; superft run takes HOST:PORT, where PORT is usually 6379"
        raise cluster.error(why)
    return _last_of_this_machine(cluster) if cluster.address == "auto" else cluster


def _last_of_this_machine(auto: Cluster) -> Cluster:
    """What ``auto`` stands for: a Ray that runs here, else the one that Ray's own file remembers (SpecError)."""
    # Ray's own answer: it looks at processes too, and knows where its file lies.
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        found = str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        raise auto.error(one_line(error)) from error
    hint = auto.hint or "if that cluster is gone, `ray stop` makes Ray forget it"
    return Cluster(found, f"{auto.called} ({found}, which Ray found on this machine)", hint)


def check_answers(cluster: Cluster) -> None:
    """Refuse HOST:PORT where nobody listens, or something that is not Ray, within seconds (SpecError)."""
    host, colon, port = cluster.address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # a name that Ray itself explains
    host = host.strip("[]")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise cluster.error(error) from error
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    if not encrypted and not _speaks_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
        raise cluster.error("something listens there, but it is not Ray")


def _speaks_grpc(address: str) -> bool:
    """Whether Ray's protocol is spoken there; a port is often another program's once a cluster has gone."""
    import grpc

    # Ray, too, goes around an HTTP proxy.
    channel = grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),))
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True
