"""How fast is this machine at what a study does? One command for a machine that has Python, torch and torchvision.

    python -m benchmarks.gpu --data cifar10.zip [--stages peak training compiled victim trial packing]

``--data`` is a zip (or folder) of image folders ``train/CLASS/*`` and ``test/CLASS/*``, mirrored in training as
CIFAR-10 is. No Ray, no Optuna, no network; safetensors only lets the decoded images be kept from run to run. Every
stage prints a row and appends it to ``results/gpu.jsonl``:

- peak: operations per second of a large matrix product in float32, TF32 and bfloat16;
- training: images per second of the training loop in float32 and bfloat16, with the share of the peak;
- compiled: the same in bfloat16, eager beside a loss compiled by inductor (SUPERFT_STEP=compiled); on a GPU also with
  inductor's own CUDA graphs (graphs), and the step captured as one CUDA graph (captured: what a study does there);
  what the first step costs, and the fewest steps that are captured, with the capture. Inductor keeps its code on
  disk: the first process of a machine pays more, and TORCHINDUCTOR_CACHE_DIR names a fresh folder. Processor seconds
  (with those of compilers that have ended) mean something beside other programs, too, if
  TORCHINDUCTOR_COMPILE_THREADS is 1;
- victim: BadNets by the recipe ``fast``. Goal: clean accuracy >= 0.93 and ASR >= 0.95 within 90 s (width 64);
- trial: super-fine-tuning, 1,000 steps at batch 256, with its evaluation. Goal: 10 s;
- packing: trials per hour of 1, 2, 4 and 8 processes, with and without MPS, and how many there should be.

``--small`` is a rehearsal for any machine (``--device cpu --width 2``): few images, few steps; rows
of no meaning, which are printed and not kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import packing
from benchmarks.common import in_turns, machine, record, summary
from benchmarks.task import Task, make_victim, photographs, run_super_ft, synchronise, task_of
from trainables.data.images import ImageSet
from trainables.machine.matrix_peak import matrix_peak, training_operations
from trainables.models.build import build_model
from trainables.training.captured_step import FEWEST_STEPS
from trainables.training.execution import Execution
from trainables.training.loop import Augmentation, LossFunction, Optimizer, cross_entropy, fit
from trainables.training.recipes import RECIPES
from trainables.victims.victim import Victim

# Of a training: loss, precision, how its steps are made.
Side = tuple[LossFunction, str, Execution]
STAGES = ("peak", "training", "compiled", "victim", "trial", "packing")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done; ``--small`` has its own."""

    matrix: int = 4096
    images: int = 50_000  # random ones of the training stages
    image_size: int = 32  # of theirs
    steps: int = 100  # per measurement of them
    batch: int = 256
    trial_steps: int = 1000
    packed_trials: int = 2
    processes: tuple[int, ...] = (1, 2, 4, 8)
    per_class: int | None = None
    epochs: float | None = None  # None: the recipe's


SMALL = Sizes(
    matrix=128, images=64, steps=2, batch=32, trial_steps=4, packed_trials=1, processes=(1, 2), per_class=20, epochs=1.0
)


class Bench:
    """One machine's stages; data and victim are made when a stage first needs them."""

    def __init__(self, device: torch.device, sizes: Sizes, width: int, repeats: int, data: Path | None) -> None:
        self.device, self.sizes, self.width, self.repeats, self.path = device, sizes, width, repeats, data
        self._victim: Victim | None = None

    @cached_property
    def task(self) -> Task:
        if self.path is None:
            raise SystemExit("--data: the stages victim, trial and packing need images")
        recipe = RECIPES["fast"]
        if self.sizes.epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=self.sizes.epochs, batch_size=self.sizes.batch)
        return task_of(photographs(self.path, self.sizes.per_class), recipe, self.width)

    @property
    def victim(self) -> Victim:
        if self._victim is None:
            self._victim = make_victim(self.task, self.device)
        return self._victim

    @cached_property
    def peaks(self) -> dict[str, float]:
        """Operations per second of a large matrix product; TF32 only where there is such a thing."""
        kinds = {"float32": (torch.float32, "highest"), "bfloat16": (torch.bfloat16, "highest")}
        if self.device.type == "cuda":
            kinds["tf32"] = (torch.float32, "high")
        before, found = torch.get_float32_matmul_precision(), {}
        for name, (dtype, precision) in kinds.items():
            torch.set_float32_matmul_precision(precision)
            found[name] = matrix_peak(self.device, dtype, self.sizes.matrix)
        torch.set_float32_matmul_precision(before)
        return found

    def peak(self) -> dict[str, Any]:
        return {"matrix": self.sizes.matrix, "operations_per_second": self.peaks}

    def training(self) -> dict[str, Any]:
        rates = self._rates(self._in_turns({name: (cross_entropy, name, "auto") for name in ("float32", "bfloat16")}))
        return {"images_per_second": rates, **self._shares(rates)}

    def compiled(self) -> dict[str, Any]:
        sides: dict[str, Side] = {
            "eager": (cross_entropy, "bfloat16", "eager"),
            "compiled": (cross_entropy, "bfloat16", "compiled"),
        }
        if self.device.type == "cuda":
            sides |= {"graphs": (_with_graphs(), "bfloat16", "eager"), "captured": (cross_entropy, "bfloat16", "auto")}
        first = {name: self._seconds(1, *side) for name, side in sides.items()}
        again = {name: self._seconds(1, *side) for name, side in sides.items()}
        seconds = self._in_turns(sides)
        rates = self._rates(seconds)
        captured = {name: self._seconds(FEWEST_STEPS, *side) for name, side in sides.items() if "captured" in sides}
        return {
            "image_size": self.sizes.image_size,
            "batch": self.sizes.batch,
            "steps": self.sizes.steps,
            "images_per_second": rates,
            "seconds_of_first_step": {name: _rounded(value) for name, value in first.items()},
            "seconds_of_next_models_first_step": {name: _rounded(value) for name, value in again.items()},
            f"seconds_of_{FEWEST_STEPS}_steps": {name: _rounded(value) for name, value in captured.items()},
            "processor_ms_per_step": {
                name: summary([1e3 * processor / self.sizes.steps for _, processor in runs])
                for name, runs in seconds.items()
            },
            **self._shares(rates),
        }

    def victim_by_fast(self) -> dict[str, Any]:
        found = [make_victim(self.task.with_seed(seed), self.device) for seed in range(self.repeats)]
        self._victim = found[0]
        return {
            "recipe": dataclasses.asdict(self.task.spec.recipe),
            "images": f"{len(self.task.data.train)} + {len(self.task.data.test)}",
            "clean_accuracy": summary([victim.evaluation.full.clean_accuracy for victim in found]),
            "asr": summary([victim.evaluation.full.asr for victim in found]),
            **{key: summary([victim.facts[key] for victim in found]) for key in ("seconds_train", "seconds_evaluate")},
        }

    def trial(self) -> dict[str, Any]:
        def run() -> Any:
            return run_super_ft(
                self.task, self.victim, self.device, steps=self.sizes.trial_steps, batch_size=self.sizes.batch
            )

        first = run()
        found = [run() for _ in range(self.repeats)]
        own = [1 - (trial.seconds_repair + trial.seconds_evaluate) / trial.wall_seconds for trial in found]
        columns = ("wall_seconds", "seconds_setup", "seconds_repair", "seconds_evaluate")
        return {
            "steps": found[0].steps,
            "first_trial_seconds": first.wall_seconds,
            **{column: summary([getattr(trial, column) for trial in found]) for column in columns},
            "share_outside_training_and_evaluation": summary(own),
            "peak_memory_mb": found[0].peak_memory_bytes >> 20,
            "before": [found[0].metrics["clean_accuracy_before"], found[0].metrics["asr_before"]],
            "after": [found[0].metrics["clean_accuracy"], found[0].metrics["asr"]],
        }

    def packing(self) -> dict[str, Any]:
        question = {"steps": self.sizes.trial_steps, "batch": self.sizes.batch, "trials": self.sizes.packed_trials}
        return {**question, **packing.measure(self.task, self.victim, self.device, self.sizes.processes, question)}

    def stages(self) -> dict[str, Callable[[], dict[str, Any]]]:
        made = (self.peak, self.training, self.compiled, self.victim_by_fast, self.trial, self.packing)
        return dict(zip(STAGES, made, strict=True))

    def _in_turns(self, sides: dict[str, Side]) -> dict[str, list[tuple[float, float]]]:
        """Wall and processor seconds of each side, repeatedly."""
        for side in sides.values():
            self._seconds(2, *side)  # first touch: kernels, caches
        measures = {name: partial(self._seconds, self.sizes.steps, *side) for name, side in sides.items()}
        return in_turns(measures, self.repeats)

    def _rates(self, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
        """Images per second of each side."""
        images = self.sizes.steps * self.sizes.batch
        return {name: summary([images / wall for wall, _ in runs]) for name, runs in seconds.items()}

    def _seconds(self, steps: int, loss: LossFunction, precision: str, execution: Execution) -> tuple[float, float]:
        """Wall and processor seconds of so many steps of `trainables.training.loop.fit`, on a model of their own."""
        generator = torch.Generator().manual_seed(0)
        model = build_model("preact_resnet18", num_classes=10, width=self.width, generator=generator).to(self.device)
        synchronise(self.device)
        started, worked = time.perf_counter(), _processor_seconds()
        fit(
            model,
            self._random_images,
            steps=steps,
            lr_at=lambda _: 0.01,
            generator=generator,
            batch_size=self.sizes.batch,
            optimizer=Optimizer("sgd"),
            augmentation=Augmentation(padding=4, flip=True),
            loss=loss,
            precision=precision,
            execution=execution,
        )
        synchronise(self.device)
        return time.perf_counter() - started, _processor_seconds() - worked

    @cached_property
    def _random_images(self) -> ImageSet:
        generator = torch.Generator().manual_seed(0)
        shape = (self.sizes.images, 3, self.sizes.image_size, self.sizes.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return ImageSet(images, torch.randint(0, 10, (self.sizes.images,), generator=generator)).to(self.device)

    def _shares(self, rates: dict[str, dict[str, float]]) -> dict[str, Any]:
        """Beside the rates: operations per image and the share of the peak."""
        model = build_model("preact_resnet18", num_classes=10, width=self.width)
        operations = training_operations(model, self.sizes.image_size)
        shares = {}
        for name, rate in rates.items():
            peak = self.peaks["float32" if name == "float32" else "bfloat16"]
            shares[name] = round(rate["median"] * operations / peak, 4)
        return {"operations_per_image": operations, "share_of_peak": shares}


def _processor_seconds() -> float:
    """Of this process and of its children that have ended (compilers)."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _rounded(seconds: tuple[float, float]) -> dict[str, float]:
    return {"wall": round(seconds[0], 2), "processor": round(seconds[1], 2)}


def _with_graphs() -> LossFunction:
    """Cross-entropy captured as CUDA graphs, forward and backward."""
    graphed = torch.compile(cross_entropy, dynamic=False, mode="reduce-overhead")

    def loss(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        value: torch.Tensor = graphed(model, images, labels).clone()  # the next replay writes over the graph's own
        return value

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="zip or folder of image folders")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a rehearsal in seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name in ("batch", "image_size", "steps", "matrix"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="if not as documented")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = SMALL if arguments.small else Sizes(matrix=8192 if device.type == "cuda" else 4096)
    given = {key: value for key in ("batch", "image_size", "steps", "matrix") if (value := getattr(arguments, key))}
    sizes = dataclasses.replace(sizes, **given)
    bench = Bench(device, sizes, arguments.width, arguments.repeats, arguments.data)
    stages = bench.stages()
    for name in arguments.stages:
        row = {"stage": name, "width": arguments.width, **stages[name](), **machine(device)}
        if arguments.small:
            print(json.dumps(row))
        else:
            record("gpu", row)


if __name__ == "__main__":
    main()
