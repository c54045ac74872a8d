"""Victims by several training recipes on the same photographs: what each reaches, and the time to a victim.

    python -m benchmarks.recipes folder:cifar10.zip --store DIR [--recipes fast bb] [--attacks clean badnets blended]
    python -m benchmarks.recipes folder:cifar10.zip --store DIR --model airbench_cnn --recipes sprint

The images are a data set's name or ``folder:PATH`` of image folders, also within a zip file; training mirrors those of
a folder as it does CIFAR-10's, unless ``--no-flip`` says no. A recipe may be changed: ``fast:batch_size=512,lr=0.4``.
One row per victim goes to ``results/recipes.jsonl``; victims that the store holds already are not trained or recorded
again. Rates are on the whole test set. Processor seconds mean something where other programs share the machine, too.

``times_faster_than_backdoorbench`` divides the time of BackdoorBench's 100 epochs on as many images, at the 59 images a
second that a loop like its own (DataLoader, PIL, float32, PreAct-ResNet18 of width 64) makes on 2 cores, by the time to
this victim: poisoning, training, evaluation. On another machine measure that rate first (the rival of
``python -m benchmarks.training_loop``) and give it as ``--rival-rate``.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, record
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.storage.store import Store
from trainables.training.recipes import RECIPES, TrainingRecipe
from trainables.victims.spec import VictimSpec
from trainables.workbench import Workbench

# BackdoorBench trains for 100 epochs; images per second of a loop like its own, see above.
RIVAL_EPOCHS, RIVAL_RATE = RECIPES["bb"].epochs, 59.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set, or folder:PATH (also of a zip file)")
    parser.add_argument("--store", type=Path, required=True, help="folder of the victims")
    parser.add_argument("--recipes", nargs="+", type=named_recipe, default=[named_recipe("fast"), named_recipe("bb")])
    parser.add_argument("--attacks", nargs="+", default=["clean", "badnets", "blended"], help="clean first: a control")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", default="preact_resnet18")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--no-flip", action="store_true", help="of a folder: mirror no image in training")
    parser.add_argument(
        "--rival-rate", type=float, default=RIVAL_RATE, help="images per second of BackdoorBench's loop"
    )
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    # All threads: what is timed is a machine, and the row says how many they were.
    threads, device = torch.get_num_threads(), torch.device(arguments.device)
    bench = Workbench(Store(arguments.store), device, threads=threads)
    data = DataSource(arguments.data, flip=False if arguments.no_flip else None)
    for seed in arguments.seeds:
        for name, recipe in arguments.recipes:
            for attack in arguments.attacks:
                spec = VictimSpec(
                    attack, arguments.model, recipe, seed, width=arguments.width, precision=arguments.precision
                )
                cell = Cell(data, spec, "none")
                if bench.store.holds(bench.victim_name(cell)):
                    print(f"{attack} by {name}, seed {seed}: known")
                    continue
                if spec.control() != spec:  # trained apart, so that it is not in the seconds
                    bench.victim(dataclasses.replace(cell, victim=spec.control()))
                question = {"attack": attack, "recipe": name, "settings": dataclasses.asdict(recipe), "seed": seed}
                question |= {"model": arguments.model, "width": arguments.width, "precision": arguments.precision}
                question |= {"mirrored": bench.dataset(data).flip}
                record("recipes", {**question, **measure(bench, cell, arguments.rival_rate), **machine(bench.device)})


def named_recipe(text: str) -> tuple[str, TrainingRecipe]:
    """``NAME`` or ``NAME:KEY=NUMBER,...``: the recipe with these keys over its own."""
    name, _, changes = text.partition(":")
    if name not in RECIPES:
        raise argparse.ArgumentTypeError(f"unknown recipe {name!r}: known: {', '.join(RECIPES)}")
    given = dict(change.split("=", 1) for change in changes.split(",")) if changes else {}
    recipe = RECIPES[name]
    typed = {key: _as_is(getattr(recipe, key), value) for key, value in given.items()}
    return text, dataclasses.replace(recipe, **typed)


def _as_is(now: Any, value: str) -> Any:
    """The text as what stands there now; a whole number may become a fraction, as half an epoch is one."""
    return float(value) if isinstance(now, int) and not value.isdecimal() else type(now)(value)


def measure(bench: Workbench, cell: Cell, rival_rate: float) -> dict[str, Any]:
    """The cell's victim, trained now if it is not in the store: its rates and the time that it took."""
    dataset, worked = bench.dataset(cell.data), time.process_time()
    victim = bench.victim(cell)
    processor, seconds = time.process_time() - worked, victim.facts["seconds"]
    rates, trained = victim.evaluation.full, victim.facts["counters"]["backward_samples"]
    rival = RIVAL_EPOCHS * len(dataset.train) / rival_rate
    return {
        "images": f"{len(dataset.train)} + {len(dataset.test)}, {dataset.fingerprint[:12]}",
        "steps": victim.facts["counters"]["steps"],
        "clean_accuracy": round(rates.clean_accuracy, 4),
        "asr": round(rates.asr, 4),
        "asr_base": None if victim.asr_base is None else round(victim.asr_base, 4),
        "clean_model_accuracy": victim.clean_model_accuracy,
        "implanted": victim.implanted,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "images_per_second": round(trained / seconds, 1),
        "images_per_processor_second": round(trained / processor, 1),
        "backdoorbench_seconds": round(rival),
        "times_faster_than_backdoorbench": round(rival / seconds, 1),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
