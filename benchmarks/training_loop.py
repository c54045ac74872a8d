"""Training images per second: our loop against DataLoader + PIL transforms + float32 NCHW, on the same cores.

    python -m benchmarks.training_loop [--width 64] [--batch 128] [--repeats 5]

Both sides train PreAct-ResNet18 at 32 pixels with SGD on the same random images, in turns within one run. The rival is
what public backdoor benchmarks do: a torchvision-style data set of PIL images, RandomCrop with padding 4, ToTensor and
Normalize per sample, float32, contiguous NCHW. Its loader gets the number of workers that makes it fastest here.

Beside the rates stands the share of the machine's own matrix peak, measured in the same run: 1 would be the floor.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks.common import in_turns, machine, ratio, record, summary
from trainables.data.images import ImageSet
from trainables.machine.matrix_peak import matrix_peak, training_operations
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.training.loop import Augmentation, Optimizer, autocast, fit

IMAGES = 4096
PEAKS = (torch.float32, torch.bfloat16)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


class PilImages(TorchDataset[tuple[torch.Tensor, int]]):
    """Arrays turned into PIL images and transformed sample by sample, as torchvision's CIFAR-10 does."""

    def __init__(self, data: ImageSet) -> None:
        self.arrays, self.labels = data.images.permute(0, 2, 3, 1).numpy(), data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def make_model(width: int, *, normalises: bool) -> Classifier:
    mean, std = (MEAN, STD) if normalises else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return build_model(
        "preact_resnet18", num_classes=10, width=width, mean=mean, std=std, generator=torch.Generator().manual_seed(0)
    )


def rival(data: ImageSet, width: int, batch: int, workers: int) -> Callable[[int], float]:
    """Seconds for so many steps of the DataLoader loop, the loader already running."""
    model = make_model(width, normalises=False).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        PilImages(data), batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    stream = itertools.chain.from_iterable(itertools.repeat(loader))

    def measure(steps: int) -> float:
        started = time.perf_counter()
        for images, labels in itertools.islice(stream, steps):
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - started

    return measure


def ours(data: ImageSet, width: int, batch: int, precision: str) -> Callable[[int], float]:
    """Seconds for so many steps of `trainables.training.loop.fit`."""
    model = make_model(width, normalises=True)
    generator = torch.Generator().manual_seed(0)

    def measure(steps: int) -> float:
        started = time.perf_counter()
        fit(
            model,
            data,
            steps=steps,
            lr_at=lambda _: 0.01,
            generator=generator,
            batch_size=batch,
            optimizer=Optimizer("sgd", 0.9, 5e-4),
            augmentation=Augmentation(padding=4),
            precision=precision,
        )
        return time.perf_counter() - started

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    data = ImageSet(
        torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (IMAGES,), generator=generator),
    )
    sides = {
        "DataLoader, 0 workers": rival(data, arguments.width, arguments.batch, 0),
        "DataLoader, 2 workers": rival(data, arguments.width, arguments.batch, 2),
        "ours, float32": ours(data, arguments.width, arguments.batch, "float32"),
        "ours": ours(data, arguments.width, arguments.batch, "auto"),
    }
    for measure in sides.values():
        measure(1)  # first touch, kernels, workers: outside the clock
    seconds = in_turns({name: partial(measure, arguments.steps) for name, measure in sides.items()}, arguments.repeats)
    images = arguments.steps * arguments.batch
    rates = {name: [images / value for value in values] for name, values in seconds.items()}
    found = {name: summary(values) for name, values in rates.items()}
    best_rival = max((name for name in sides if name.startswith("DataLoader")), key=lambda name: found[name]["median"])
    operations = training_operations(make_model(arguments.width, normalises=True), 32)
    with autocast(torch.device("cpu")):
        precision = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
    peaks = {str(dtype).removeprefix("torch."): matrix_peak(torch.device("cpu"), dtype) for dtype in PEAKS}
    record(
        "training_loop",
        {
            "model": "preact_resnet18",
            "width": arguments.width,
            "batch": arguments.batch,
            "images_per_second": found,
            "rival": best_rival,
            "ratio": ratio(rates["ours"], rates[best_rival]),
            "operations_per_image": operations,
            "matrix_peak": peaks,
            "share_of_peak": {
                name: rate["median"] * operations / peaks[precision if name == "ours" else "float32"]
                for name, rate in found.items()
            },
            "threads": torch.get_num_threads(),
            **machine(torch.device("cpu")),
        },
    )


if __name__ == "__main__":
    main()
