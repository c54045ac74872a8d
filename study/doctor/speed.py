"""The look at speed: images per second of training, and their share of what the device's matrix products reach."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any

from study.doctor.finding import Finding, Options
from trainables.machine.cores import usable_cores

MODEL, IMAGE_SIZE, CLASSES = "airbench_cnn", 32, 10
IMAGES = 2048
BATCH = {"cpu": 128, "cuda": 512}
WARM_UP = {"cpu": 1, "cuda": 10}
# Far below what was ever measured on an idle machine (0.4 and more on processors): something is in the way.
LEAST_SHARE = {"cpu": 0.1, "cuda": 0.01}
FOR_THE_PEAK = 0.2  # of the time


def look_at_throughput(options: Options) -> Finding:
    """How fast a small model trains on one core, as a trial does, or one card, and its share of what that can do."""
    from trainables.machine.out_of_memory import is_out_of_memory

    try:
        facts = measure(options.seconds)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        todo = "other programs hold it: nvidia-smi names them; end them"
        return Finding("fail", "a GPU has no memory left for a small model", todo)
    kind = "cpu" if facts["threads"] else "cuda"
    where = "one core" if facts["threads"] else "one GPU"
    says = (
        f"{facts['images_per_second']:.0f} images/s of training on {where} ({facts['model']} of width "
        f"{facts['width']}, {IMAGE_SIZE} pixels, batch {facts['batch']}, {facts['precision']}), "
        f"{facts['share_of_peak']:.2f} of the matrix peak measured, {facts['matrix_peak'] / 1e12:.3g} TFLOP/s"
    )
    if facts["share_of_peak"] < LEAST_SHARE[kind]:
        busy = f" (load {facts['load']:.1f} on {usable_cores()} cores)" if facts["load"] is not None else ""
        return Finding("warn", says, f"little: look for other programs on this machine{busy}, and measure again", facts)
    return Finding("ok", says, facts=facts)


def measure(seconds: float) -> dict[str, Any]:
    """Peak, then training, in about so many seconds (first steps not counted)."""
    import torch

    from trainables.data.images import ImageSet
    from trainables.machine.device import best_device
    from trainables.machine.matrix_peak import matrix_peak_within, training_operations
    from trainables.machine.provenance import describe_device
    from trainables.machine.threads import on_threads
    from trainables.models.build import MODELS, build_model
    from trainables.training.loop import Augmentation, Counters, Optimizer, fit, resolved_precision

    device = best_device()
    on_card, batch = device.type == "cuda", BATCH[device.type]
    precision = resolved_precision(device, "auto")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.randint(0, CLASSES, (IMAGES,), generator=generator)).to(device)
    with ExitStack() as stack:
        if not on_card:
            stack.enter_context(on_threads(1))  # as a trial has; several wait for each other on a busy machine
        peak = matrix_peak_within(device, getattr(torch, precision), FOR_THE_PEAK * seconds)
        model = build_model(MODEL, num_classes=CLASSES, image_size=IMAGE_SIZE, generator=generator).to(device)

        def train(steps: int, seconds: float) -> tuple[int, float]:
            """Steps that were made, and what they took."""
            counters, started = Counters(), time.perf_counter()
            fit(
                model,
                images,
                steps=steps,
                lr_at=lambda _: 0.01,
                generator=generator,
                batch_size=batch,
                optimizer=Optimizer("nesterov"),
                augmentation=Augmentation(padding=4, flip=True),
                counters=counters,
                until=lambda _: time.perf_counter() - started > seconds,
            )
            if on_card:
                torch.cuda.synchronize(device)
            return counters.steps, time.perf_counter() - started

        train(WARM_UP[device.type], float("inf"))
        steps, took = train(10**6, (1 - FOR_THE_PEAK) * seconds)
        operations = training_operations(model, IMAGE_SIZE)
        return {
            "model": MODEL,
            "width": MODELS.get(MODEL).default_width,
            "device": describe_device(device),
            "threads": None if on_card else torch.get_num_threads(),
            "precision": precision,
            "batch": batch,
            "steps": steps,
            "seconds": took,
            "images_per_second": steps * batch / took,
            "operations_per_image": operations,
            "matrix_peak": peak,
            "share_of_peak": steps * batch / took * operations / peak,
            "load": load,
        }
