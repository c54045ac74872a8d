"""Looks at NVIDIA's side: the driver and the cards, CUDA graphs, MPS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

from study.doctor.finding import Finding, Options, gigabytes
from trainables.storage.messages import one_line

DRIVER = Path("/proc/driver/nvidia/version")
DEVICE = Path("/dev/nvidiactl")
VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = Finding("ok", "no GPU")
MPS = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
ANSWER_SECONDS = 5.0


def driver_version() -> str | None:
    """Of NVIDIA's kernel driver; ``unknown`` where only its device is seen (a container); None: there is none."""
    try:
        found = re.search(r"NVRM version:.*?\s(\d+\.[\d.]+)", DRIVER.read_text())
    except OSError:
        return "unknown" if DEVICE.exists() else None
    return found[1] if found else "unknown"


def look_at_cuda(_: Options) -> Finding:
    """Whether torch computes on every card that the machine has."""
    import torch

    driver, built = driver_version(), torch.version.cuda or torch.version.hip
    facts: dict[str, Any] = {"driver": driver, "built_for": built, "cards": []}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        if driver is None:
            return Finding("ok", "no NVIDIA driver here: trials run on cores", facts=facts)
        here = f"NVIDIA's driver is here (version {driver})"
        if built is None:
            todo = "install a torch with CUDA (https://pytorch.org/get-started)"
            return Finding("fail", f"{here}, but torch {torch.__version__} is built without CUDA", todo, facts)
        if (visible := os.environ.get(VISIBLE)) is not None and not re.match(r"\s*[\dA-Z]", visible):
            return Finding(
                "warn", f"{here}, but {VISIBLE}={visible!r} hides its GPUs", f"unset {VISIBLE} to use them", facts
            )
        why = f": {one_line(said[-1].message)}" if said else ""
        todo = (
            f"nvidia-smi must list the GPUs; update the driver for CUDA {built}, or install a torch for an older CUDA"
        )
        return Finding("fail", f"{here}, but torch {torch.__version__} finds no GPU{why}", todo, facts)
    cards: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            torch.ones(8, device=f"cuda:{number}").sum().item()
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            todo = f"look at it with nvidia-smi; without it: {VISIBLE} with the numbers of the others"
            return Finding("fail", f"GPU {number} ({name}) does not compute: {one_line(error)[:300]}", todo, facts)
        cards.append({"name": name, "memory_bytes": total, "free_bytes": free})
    facts["cards"] = cards
    names = ", ".join(f"{card['name']} with {gigabytes(card['memory_bytes'])}" for card in cards)
    says = f"{names}; torch is built for {built}, driver {driver or 'unknown'}"
    held = [number for number, card in enumerate(cards) if card["free_bytes"] < card["memory_bytes"] / 2]
    if held:
        which = ", ".join(map(str, held))
        todo = f"nvidia-smi names them; end them, or leave the GPU out with {VISIBLE}"
        return Finding("warn", f"{says}; other programs hold more than half the memory of GPU {which}", todo, facts)
    return Finding("ok", says, facts=facts)


def look_at_capture(_: Options) -> Finding:
    """Whether a step, forward and backward, can be captured as a CUDA graph and replayed with the same result."""
    import torch

    if not torch.cuda.is_available():
        return NO_GPU
    try:
        right = _captured_step_is_right()
    except RuntimeError as error:
        why = f"a step cannot be captured: {one_line(error)[:300]}"
    else:
        if right:
            return Finding("ok", "a training step can be captured as a CUDA graph", facts={"captured": True})
        why = "a captured step gives another result than the same step without capture"
    todo = "studies run without it, small models slower; bring torch and NVIDIA's driver up to date"
    return Finding("warn", why, todo, {"captured": False})


def _captured_step_is_right() -> bool:
    import torch

    weight = torch.full((4, 4), 0.5, device="cuda", requires_grad=True)
    inputs = torch.ones(4, 4, device="cuda")

    def step() -> torch.Tensor:
        (gradient,) = torch.autograd.grad((inputs @ weight).square().sum(), weight)
        return gradient

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are loaded outside of the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()
    inputs.fill_(2.0)
    graph.replay()
    return bool(torch.allclose(result, step()))


def look_at_mps(_: Options) -> Finding:
    """Whether NVIDIA's MPS runs, and whether trials can share a card at all."""
    import torch

    if not torch.cuda.is_available():
        return NO_GPU
    wanted, runs, modes = os.environ.get(PIPES), _mps_answers(), _compute_modes()
    facts = {"runs": runs, "pipe_directory": wanted, "compute_modes": modes}
    if not runs and any("Exclusive" in mode for mode in modes):
        todo = "nvidia-smi -c DEFAULT, or start MPS: nvidia-cuda-mps-control -d"
        return Finding("fail", "a GPU is in exclusive mode without MPS, so trials cannot share it", todo, facts)
    if runs:
        return Finding("ok", "runs: trials that share a GPU compute side by side", facts=facts)
    if wanted:
        todo = f"start it (nvidia-cuda-mps-control -d), or unset {PIPES}"
        return Finding("warn", f"{PIPES}={wanted} is set, but no MPS answers there", todo, facts)
    return Finding(
        "ok", "does not run: trials that share a GPU take turns (it is optional; see cluster/README.md)", facts=facts
    )


def _mps_answers() -> bool:
    """Whether a control daemon answers; asking starts none."""
    if shutil.which(MPS) is None:
        return False
    return _output([MPS], "get_server_list\n") is not None


def _compute_modes() -> list[str]:
    said = _output(["nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader"])
    return [line.strip() for line in (said or "").splitlines() if line.strip()]


def _output(command: list[str], given: str = "") -> str | None:
    """What a program prints; None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
