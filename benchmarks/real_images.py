"""Attacks and defenses at their published settings on real images: what each reaches, and in how many seconds.

    python -m benchmarks.real_images folder:cifar10-mini.zip [--attacks badnets blended] [--defenses none ft]

The images are a data set's name or ``folder:PATH`` of image folders, also within a zip file. Every attack's victim and
clean control are trained once (recipe ``one_cycle`` below); then each defense repairs a copy. One row per trial goes to
``results/real_images.jsonl``; trials that are there already, under the same settings, are not run again. Seconds are
of the trial alone; those of a victim are in the rows of ``none``. Rates are on the whole test set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import search_spaces
from benchmarks.common import RESULTS, machine, record
from trainables.data import DataSource
from trainables.recipes import TrainingRecipe
from trainables.store import Store
from trainables.trial import Cell, Workbench
from trainables.victims import VictimSpec

NAME = "real_images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set, or folder:PATH (also of a zip file)")
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blended"])
    parser.add_argument("--defenses", nargs="+", default=["none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", default="preact_resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1, help="peak of the victims' one-cycle schedule")
    parser.add_argument("--clean-fraction", type=float, default=0.1)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME.KEY=VALUE", help="settings of attacks or defenses"
    )
    parser.add_argument("--store", type=Path, required=True, help="folder of the victims")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    recipe = TrainingRecipe(arguments.epochs, arguments.batch, arguments.lr, schedule="one_cycle", weight_decay=5e-4)
    bench = Workbench(Store(arguments.store), device)
    changes = _changes(arguments.set)
    known = _known()
    for seed in arguments.seeds:
        for attack in arguments.attacks:
            spec = VictimSpec(
                attack=attack,
                attack_settings=changes.get(attack, {}),
                model=arguments.model,
                width=arguments.width,
                recipe=recipe,
                seed=seed,
            )
            for defense in arguments.defenses:
                settings = {**search_spaces.paper_point(defense), **changes.get(defense, {})}
                cell = Cell(DataSource(arguments.data), spec, defense, arguments.clean_fraction)
                question = {
                    "attack": attack,
                    "attack_settings": dict(spec.attack_settings),
                    "defense": defense,
                    "settings": settings,
                    "model": f"{arguments.model}, width {arguments.width}",
                    "recipe": f"one-cycle to {recipe.lr:g}, {recipe.epochs:g} epochs, batch {recipe.batch_size}",
                    "clean_fraction": arguments.clean_fraction,
                    "seed": seed,
                }
                if json.dumps(question, sort_keys=True) in known:
                    print(f"{attack} + {defense}, seed {seed}: known")
                    continue
                record(NAME, {**question, **_measure(bench, cell, settings), "threads": torch.get_num_threads()})


def _measure(bench: Workbench, cell: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One trial's results; a defense that cannot run on this victim leaves its reason."""
    victim, dataset = bench.victim(cell), bench.dataset(cell.data)
    started = time.perf_counter()
    row: dict[str, Any] = {"images": f"{len(dataset.train)} + {len(dataset.test)}, {dataset.fingerprint[:12]}"}
    try:
        result = bench.run(cell, settings)
    except ValueError as error:
        return {**row, "status": "refused", "reason": str(error), **machine(bench.device)}
    for key in ("asr", "clean_accuracy", "robust_accuracy", "asr_before", "clean_accuracy_before", "asr_base"):
        value = result.metrics[key]
        row[key] = None if value is None else round(value, 4)
    row |= {"status": result.status, "flags": result.flags, "n_clean": result.metrics["n_clean"]}
    row |= {"n_triggered": result.metrics["n_triggered"], "seconds": round(time.perf_counter() - started, 1)}
    row |= {"victim_seconds": round(victim.facts["seconds"], 1), "extra_metrics": victim.facts["extra_metrics"]}
    return {**row, "detection": result.detection, "notes": result.notes, **machine(bench.device)}


def _changes(assignments: list[str]) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        name, _, setting = key.partition(".")
        changes.setdefault(name, {})[setting] = json.loads(value)
    return changes


def _known() -> set[str]:
    """The questions that have been answered, as JSON."""
    file = RESULTS / f"{NAME}.jsonl"
    keys = ("attack", "attack_settings", "defense", "settings", "model", "recipe", "clean_fraction", "seed")
    lines = file.read_text().splitlines() if file.exists() else []
    return {json.dumps({key: row[key] for key in keys}, sort_keys=True) for row in map(json.loads, lines)}


if __name__ == "__main__":
    main()
