"""The RayJob for KubeRay: it fits the published schema, its parts fit each other, and kubectl takes it."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from study.cli import main
from tests.study.processes import ROOT

JOB = ROOT / "cluster" / "rayjob.yaml"
SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob-schema.yaml").read_text())


def job() -> dict[str, Any]:
    content = json.loads(
        json.dumps(yaml.safe_load(JOB.read_text()))
    )  # no two parts are one object, as anchors make them
    assert isinstance(content, dict)
    return content


def wrong(given: dict[str, Any]) -> list[str]:
    """Where the schema finds fault: path and message."""
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(given)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def test_the_schema_is_one_and_the_rayjob_fits_it() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert wrong(job()) == []


def cluster(given: dict[str, Any]) -> dict[str, Any]:
    found = given["spec"]["rayClusterSpec"]
    assert isinstance(found, dict)
    return found


def container(given: dict[str, Any]) -> dict[str, Any]:
    found = cluster(given)["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda j: j.update(apiVersion="ray.io/v1alpha1"), "apiVersion"),
        (lambda j: j["spec"].update(ttlSecondAfterFinished=1), "ttlSecondAfterFinished"),
        (lambda j: j["spec"].update(entrypointNumCpus="1"), "spec.entrypointNumCpus"),
        (lambda j: j["spec"].update(runtimeEnvYAML={"env_vars": {}}), "spec.runtimeEnvYAML"),
        (lambda j: j["spec"].update(submissionMode="SSH"), "spec.submissionMode"),
        (lambda j: cluster(j)["authOptions"].update(mode="Token"), "authOptions.mode"),
        (lambda j: cluster(j)["headGroupSpec"]["rayStartParams"].update({"num-gpus": 0}), "rayStartParams.num-gpus"),
        (lambda j: cluster(j)["headGroupSpec"].pop("template"), "'template' is a required property"),
        (lambda j: cluster(j)["workerGroupSpecs"][0].pop("maxReplicas"), "'maxReplicas' is a required property"),
        (lambda j: cluster(j)["workerGroupSpecs"][0].update(replicas="2"), "workerGroupSpecs.0.replicas"),
        (lambda j: container(j).update(imagePulPolicy="Always"), "imagePulPolicy"),
        (lambda j: container(j)["resources"]["limits"].update(memory="16 GB"), "resources.limits.memory"),
        (lambda j: container(j)["env"].append({"name": "A", "value": 1}), "value: 1 is not of type 'string'"),
        (lambda j: container(j)["volumeMounts"][0].pop("mountPath"), "'mountPath' is a required property"),
    ],
)
def test_each_mistake_is_found_where_it_is(change: Callable[[dict[str, Any]], object], named: str) -> None:
    given = job()
    change(given)
    found = wrong(given)
    assert len(found) == 1, found
    assert named in found[0]


def test_the_parts_of_the_rayjob_fit_each_other_and_its_command_exists() -> None:
    given = job()
    assert cluster(given)["authOptions"] == {"mode": "token"}
    for group in (cluster(given)["headGroupSpec"], *cluster(given)["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for item in pod["containers"]:  # Kubernetes wants GPUs equal, and a pod of equal ones is evicted last
            assert item["resources"]["requests"] == item["resources"]["limits"]
    for group in cluster(given)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    words = given["spec"]["entrypoint"].split()
    assert words[:2] == ["superft", "run"]
    known = {option for parameter in main.commands["run"].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert all(isinstance(value, str) for value in yaml.safe_load(given["spec"]["runtimeEnvYAML"])["env_vars"].values())
    # KubeRay keeps a finished job's cluster for so long, and only if it is told to end it at all.
    assert given["spec"]["shutdownAfterJobFinishes"] is True


RAYJOBS = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": "ray.io/v1",
    "resources": [
        {
            "name": "rayjobs",
            "singularName": "rayjob",
            "namespaced": True,
            "kind": "RayJob",
            "verbs": ["get", "create", "patch", "delete", "list"],
        }
    ],
}
VERSION = {"groupVersion": "ray.io/v1", "version": "v1"}
ANSWERS = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "ray.io", "versions": [VERSION], "preferredVersion": VERSION}],
    },
    "/apis/ray.io/v1": RAYJOBS,
}
MISSING = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class OnlyDiscovery(http.server.BaseHTTPRequestHandler):
    """A Kubernetes that knows KubeRay's RayJob and holds none: what kubectl asks before it would send anything."""

    def do_GET(self) -> None:
        found = ANSWERS.get(self.path.partition("?")[0])
        body = json.dumps(MISSING if found is None else found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.send_error(500, "a dry run sends nothing")

    do_PATCH = do_PUT = do_DELETE = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kubectl(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """kubectl before such a Kubernetes, on loopback; its configuration and its cache are the test's."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OnlyDiscovery) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def call(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, f"--server=http://127.0.0.1:{server.server_port}", f"--cache-dir={tmp_path}", *words],
                env={"HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none"), "PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        yield call
        server.shutdown()


def test_kubectl_takes_the_rayjob_in_a_dry_run(kubectl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    # Without validation: for that kubectl wants the schema in a binary form that only a real server has.
    tried = kubectl("apply", "--dry-run=client", "--validate=false", "-f", str(JOB), "-o", "json")
    assert tried.returncode == 0, tried.stderr
    sent = json.loads(tried.stdout)
    sent["metadata"].pop("annotations", None)
    assert sent["metadata"].pop("namespace") == "default"
    assert sent == job(), "kubectl reads something else than we do"


def test_the_spec_of_the_recipe_becomes_the_file_that_the_job_reads(
    kubectl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (line,) = (line for line in JOB.read_text().splitlines() if "kubectl create configmap" in line)
    words = line.removeprefix("#").split()
    words = words[: words.index("--from-file=study.yaml=my.yaml") + 1]
    (tmp_path / "my.yaml").write_text("name: one\n")
    words[-1] = words[-1].replace("my.yaml", str(tmp_path / "my.yaml"))
    made = kubectl(*words[1:], "--dry-run=client", "-o", "json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    (volume,) = (item for item in cluster(job())["headGroupSpec"]["template"]["spec"]["volumes"] if "configMap" in item)
    (mount,) = (item for item in container(job())["volumeMounts"] if item["name"] == volume["name"])
    assert volume["configMap"]["name"] == said["metadata"]["name"]
    (file,) = said["data"]
    assert f"{mount['mountPath']}/{file}" in job()["spec"]["entrypoint"]
