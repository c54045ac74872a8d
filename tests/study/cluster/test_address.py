"""A cluster that is not there is named within seconds, be it from --address, RAY_ADDRESS or Ray's own file."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.cluster import address as module
from study.cluster.address import Cluster, check_answers, wanted_cluster
from study.cluster.connect import ray_cluster
from study.spec.yaml_io import SpecError
from tests.network import free_ports


@pytest.fixture
def nobody() -> str:
    """HOST:PORT where nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def other_program() -> Iterator[str]:
    """HOST:PORT of something that is not Ray: it accepts, and answers with an error of HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nobody: str) -> str:
    """The address in Ray's file of a cluster that has gone; no Ray runs on this machine."""
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", frozenset)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(nobody)
    return nobody


@pytest.mark.parametrize(
    ("given", "inherited", "used", "called"),
    [
        ("a:1", "", "a:1", "--address a:1"),
        ("a:1", "b:2", "a:1", "--address a:1"),
        (None, "b:2", "b:2", "RAY_ADDRESS=b:2"),
        ("auto", "b:2", "b:2", "RAY_ADDRESS=b:2"),
        ("ray://a:1", "b:2", "ray://a:1", "--address ray://a:1"),
    ],
)
def test_address_wins_over_the_variable_and_auto_does_not(
    monkeypatch: pytest.MonkeyPatch, given: str | None, inherited: str, used: str, called: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", inherited)
    cluster = wanted_cluster(given)
    assert cluster is not None
    assert (cluster.address, cluster.called) == (used, called)


@pytest.mark.parametrize(("given", "inherited"), [(None, ""), ("local", "b:2"), (None, "local"), ("local", "")])
def test_ray_is_started_here_where_nothing_or_local_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, given: str | None, inherited: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", inherited)
    assert wanted_cluster(given) is None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("given", [None, "auto"])
def test_a_stale_variable_is_named_within_seconds(
    monkeypatch: pytest.MonkeyPatch, nobody: str, given: str | None
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    wanted = f"^RAY_ADDRESS={nobody}: cannot reach a Ray cluster: .*; unset RAY_ADDRESS to run on this machine$"
    with pytest.raises(SpecError, match=wanted), ray_cluster(given):
        pass


@pytest.mark.timeout(60)
def test_a_cluster_that_ray_remembers_and_that_has_gone_is_named_within_seconds(remembered: str) -> None:
    wanted = rf"^--address auto \({remembered}, .*\): cannot reach a Ray cluster: .*`ray stop`"
    # Ray turns 127.0.0.1 into the outer address of this machine, where nobody listens either.
    with pytest.raises(SpecError, match=wanted.replace("127.0.0.1", "[0-9.]+")), ray_cluster("auto"):
        pass


@pytest.mark.timeout(60)
def test_auto_without_any_cluster_says_so(remembered: str, tmp_path: Path) -> None:
    (tmp_path / "ray" / "ray_current_cluster").unlink()
    with pytest.raises(SpecError, match=r"^--address auto: cannot reach a Ray cluster: [^\n]*$"), ray_cluster("auto"):
        pass


def test_another_program_at_the_port_is_not_taken_for_ray(monkeypatch: pytest.MonkeyPatch, other_program: str) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    with pytest.raises(SpecError, match=r"something listens there, but it is not Ray$"):
        check_answers(Cluster(other_program, "--address x"))


def test_the_address_of_a_dashboard_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(SpecError, match=r"^RAY_ADDRESS=http://127\.0\.0\.1:8265: .*superft submit.*HOST:PORT"):
        wanted_cluster(None)


@pytest.mark.parametrize("address", ["name", "10.0.0.1:port"])
def test_what_has_no_port_is_left_to_ray(address: str) -> None:
    check_answers(Cluster(address, address))
