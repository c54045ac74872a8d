"""Ray for the time of a study: a cluster that is there or one on this machine; and what its nodes have for trials."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from study.cluster.address import check_answers, wanted_cluster
from study.cluster.sockets import RAY_FOLDER, place_for_sockets
from study.plan.slots import Node
from study.record.temporary import scratch_folder
from study.spec.yaml_io import SpecError
from trainables.machine.cores import usable_cores
from trainables.storage.messages import one_line

log = logging.getLogger("superft.engine")

LONGEST_CAUSE = 400  # characters of it in a message
ACCELERATOR = "accelerator_type:"


def usable_nodes() -> list[Node]:
    """The living nodes of the running Ray, less what the driver's own job has reserved.

    What other jobs hold is not taken off: it may become free at any time, and until then Ray makes our trials wait.
    """
    import ray

    own, here = _own_reservation(), ray.get_runtime_context().get_node_id()
    return sorted(
        (
            node_of(node["NodeID"], node["Resources"], own if node["NodeID"] == here else {})
            for node in ray.nodes()
            if node["Alive"]
        ),
        key=lambda node: node.name,
    )


def node_of(name: str, resources: Mapping[str, float], reserved: Mapping[str, float]) -> Node:
    """A node of Ray's resources (``CPU``, ``GPU``), less what is reserved on it."""
    kinds = sorted(key.removeprefix(ACCELERATOR) for key in resources if key.startswith(ACCELERATOR))
    cpus, gpus = (max(0.0, resources.get(key, 0.0) - reserved.get(key, 0.0)) for key in ("CPU", "GPU"))
    return Node(name, cpus, int(gpus), kinds[0] if kinds else "")


def _own_reservation() -> dict[str, float]:
    """What the job that this driver is was given for its entrypoint, on the driver's node; nothing outside of jobs.

    Ray keeps it with the job: `superft submit` asks for one CPU, `ray job submit` for what its user says.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    job = config.get("metadata", {}).get("job_submission_id")
    stored = _internal_kv_get(f"_ray_internal_job_info_{job}", namespace="job") if job else None
    info: dict[str, Any] = json.loads(stored) if stored else {}
    return {
        "CPU": float(info.get("entrypoint_num_cpus") or 0.0),
        "GPU": float(info.get("entrypoint_num_gpus") or 0.0),
    }


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[str | None]:
    """Ray for the time of the study: the given cluster, or one on this machine that is gone afterwards.

    Gives this job's page of the cluster's dashboard, where it has one.
    """
    # Ray reads these at its import or start; a user's own setting wins.
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our ledger is the record
        "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),  # the feeder limits; with 1, Tune's default, slots stay empty
        "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # Tune's snapshots are never restored
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a spec may name its data by a relative path
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }.items():
        os.environ.setdefault(key, value)
    cluster = wanted_cluster(address)
    if cluster is not None:
        check_answers(cluster)
    import ray

    # Tune logs each failed attempt with its traceback; the ledger and our own line keep the cause.
    logging.getLogger("ray.tune").setLevel(logging.DEBUG if log.isEnabledFor(logging.INFO) else logging.CRITICAL)
    place = place_for_sockets() if cluster is None else None
    with contextlib.ExitStack() as stack:
        try:
            if cluster is None:
                temporary = stack.enter_context(scratch_folder(place))
                context = ray.init(
                    address="local",
                    num_cpus=usable_cores(),  # Ray itself sees no affinity: on a shared node it would take all cores
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Ray listens on all interfaces all the same; who calls it must know its token (default since 2.59).
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(temporary / RAY_FOLDER),
                )
            else:
                context = ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            # All lines: of a version mismatch the first one names no version.
            why = one_line(error)[:LONGEST_CAUSE]
            if cluster is None:
                raise SpecError(f"Ray does not start on this machine: {why}") from error
            hint = "is it up, and its token here (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)?"
            raise cluster.error(why, hint=hint if isinstance(error, ConnectionError) else "") from error
        stack.callback(ray.shutdown)
        url = context.dashboard_url
        yield f"http://{url}/#/jobs/{ray.get_runtime_context().get_job_id()}" if url else None
