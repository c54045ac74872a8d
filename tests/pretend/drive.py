"""Training, every attack and every defense on the pretend device, in a process of its own: what each met, as JSON.

python -m tests.pretend.drive
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superft.testing.defense_subject import small_settings
from superft.testing.toy import SMALL, toy_dataset, toy_spec
from tests.pretend import device as pretend
from tests.pretend.capture import RecordedGraphs
from tests.pretend.variants import VARIANTS
from trainables.attacks.base import ATTACKS
from trainables.data.images import FeatureSet, ImageSet
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES
from trainables.job import Cell
from trainables.machine import transfer
from trainables.models.build import build_model, register
from trainables.models.classifier import Classifier, Head
from trainables.storage.memo import Memo
from trainables.storage.store import Store
from trainables.training import captured_step
from trainables.training.captured_step import replayable
from trainables.training.loop import Augmentation, Optimizer, fit
from trainables.trial import run_trial
from trainables.victims.make import obtain_victim
from trainables.victims.spec import VictimSpec

MODEL = "pretend_chain"


@register(MODEL, "four convolutions: what a rule about devices needs of a model", default_width=4)
def chain(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """PyTorch's layers alone, so that a step is a few dozen operations."""
    stages = [
        nn.Sequential(nn.Sequential(nn.Conv2d(n, width, 3, s, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()))
        for n, s in ((3, 1), (width, 2), (width, 2), (width, 1))
    ]
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(width, num_classes), mean, std)


def met(work: Callable[[], int]) -> dict[str, Any]:
    """What happened in ``work``, which says how many steps it made."""
    pretend.waits.clear()
    pretend.sent.clear()
    error, steps = None, 0
    try:
        with pretend.Rules():
            steps = work()
    except Exception as problem:  # noqa: BLE001 - whatever it is, the test says it
        places = [
            f"{frame.filename.rpartition('/trainables/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(problem.__traceback__)
            if "/trainables/" in frame.filename
        ]
        error = f"{type(problem).__name__}: {problem} ({' > '.join(places[-3:])})"
    waits = [[what, place, times] for (what, place), times in pretend.waits.items()]
    return {"error": error, "steps": steps, "waits": waits, "sent": pretend.sent.total()}


def train(images: ImageSet) -> int:
    """All that a step of `fit` may do."""
    model = build_model(MODEL, num_classes=10, width=4, generator=torch.Generator().manual_seed(0))

    def further(parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=1e-3)

    def brighter(batch: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return batch * 0.9 + 0.1, labels

    steps = 0
    for optimizer in (Optimizer(), Optimizer("adamw")):
        history = fit(
            model.to(pretend.device()), images.to(pretend.device()), steps=12, batch_size=8,
            lr_at=lambda step: 0.01 / (step + 1), momentum_at=(lambda _: 0.8) if optimizer.name == "sgd" else None,
            generator=torch.Generator().manual_seed(0), optimizer=optimizer, augmentation=Augmentation(2, True),
            transform=brighter, perturb=further, grad_clip=1.0,
        )  # fmt: skip
        steps += len(history.loss)
    return steps


def spoiled(images: ImageSet) -> int:
    """A step as it must not be: a tensor made on the CPU meets the batch."""
    weights = torch.ones(8)

    def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        return (nn.functional.cross_entropy(model(batch), labels, reduction="none") * weights).mean()

    model = build_model(MODEL, num_classes=10, width=4).to(pretend.device())
    fit(
        model, images.to(pretend.device()), steps=1, batch_size=8, lr_at=lambda _: 0.1, generator=torch.Generator(),
        loss=loss,
    )  # fmt: skip
    return 1


def waiting(images: ImageSet) -> int:
    """A step that copies from the CPU and asks for a value: it works, and waits each time."""

    def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(model(batch), labels, weight=torch.ones(10).to(batch.device))
        return value * 2 if value.item() > 3 else value

    model = build_model(MODEL, num_classes=10, width=4).to(pretend.device())
    fit(
        model, images.to(pretend.device()), steps=3, batch_size=8, lr_at=lambda _: 0.1, generator=torch.Generator(),
        loss=loss,
    )  # fmt: skip
    return 3


def plain(images: ImageSet, execution: str = "eager") -> int:
    """A hundred steps as most are: cropped, flipped, cross-entropy."""
    model = build_model(MODEL, num_classes=10, width=4, generator=torch.Generator().manual_seed(0))
    history = fit(
        model.to(pretend.device()), images.to(pretend.device()), steps=100, batch_size=8, lr_at=lambda step: 0.1,
        generator=torch.Generator().manual_seed(0), augmentation=Augmentation(2, True), execution=execution,
    )  # fmt: skip
    return len(history.loss)


def replayed(images: ImageSet) -> int:
    """The same with the step captured."""
    graphs = RecordedGraphs()
    captured_step.graphs_on = lambda _device: graphs
    try:
        steps = plain(images, "auto")
    finally:
        captured_step.graphs_on = lambda _device: None
    assert graphs.replays == steps - captured_step.WARM_UP_STEPS, graphs.replays
    return steps


def refused(images: ImageSet) -> int:
    """A loss that says it may be replayed, and sends a tensor of the CPU: found out before the capture."""

    @replayable
    def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
        weights = transfer.sent_ahead(torch.ones(10), batch.device)
        return nn.functional.cross_entropy(model(batch), labels, weight=weights)

    graphs = RecordedGraphs()
    captured_step.graphs_on = lambda _device: graphs
    try:
        model = build_model(MODEL, num_classes=10, width=4).to(pretend.device())
        history = fit(
            model, images.to(pretend.device()), steps=20, batch_size=8, lr_at=lambda _: 0.1,
            generator=torch.Generator(), loss=loss,
        )  # fmt: skip
    finally:
        captured_step.graphs_on = lambda _device: None
    assert (graphs.warmed_up, graphs.captures) == (captured_step.WARM_UP_STEPS, 0)
    return len(history.loss)


def head(images: ImageSet) -> int:
    """An encoder's head with dropout, whose mask of a whole batch is drawn on the CPU: 128 KiB."""
    model = build_model("encoder_resnet18", num_classes=10, width=2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 10
    vectors = FeatureSet(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), labels)
    history = fit(
        Head(model).to(pretend.device()), FeatureSet(vectors.inputs.to(pretend.device()), labels.to(pretend.device())),
        steps=3, batch_size=256, lr_at=lambda _: 0.1, generator=torch.Generator(),
    )  # fmt: skip
    return len(history.loss)


def spec_of(attack: str, **settings: Any) -> VictimSpec:
    settings |= {"poison_rate": 0.1} if attack == "adap_blend" else {}
    spec = toy_spec(attack, width=4, **settings)
    # The path of the handcrafted attack leads through this one model.
    return spec if attack == "handcrafted" else dataclasses.replace(spec, model=MODEL)


def main() -> None:
    torch.set_num_threads(1)
    pretend.install()
    data, place = toy_dataset(train=100, test=40), pretend.device()
    ways = (train, plain, replayed, refused, head, spoiled, waiting)
    found = {f"fit {way.__name__}": met(lambda way=way: way(data.train)) for way in ways}
    # From here on nothing is so small that it need not be pinned: these batches are, and a real one is not.
    transfer.SENT_AT_ONCE = 0
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for name, (attack, settings) in {**{name: (name, {}) for name in ATTACKS.names()}, **VARIANTS}.items():
            spec = spec_of(attack, **settings)
            found[f"attack {name}"] = met(
                lambda spec=spec: obtain_victim(spec, data, store, place).facts["counters"]["steps"]
            )
        victim = obtain_victim(spec_of("badnets"), data, store, place)
        for name in DEFENSES.names():
            settings = small_settings(name, 30, SMALL.get(name, {}))
            cell = Cell(DataSource("toy"), victim.spec, name, 0.3)
            found[f"defense {name}"] = met(
                lambda cell=cell, settings=settings: (
                    run_trial(cell, settings, dataset=data, victim=victim, device=place, memo=Memo()).steps
                )
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
