"""Claims of trainables.training.captured_step, over a stand-in for capture and replay: the same steps as without."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pretend.capture import RecordedGraphs
from tests.toy import toy_dataset
from trainables.data.images import FeatureSet, ImageSet
from trainables.models.build import build_model
from trainables.models.classifier import Classifier, Head
from trainables.registry import SettingError
from trainables.training.arithmetic import arithmetic, arithmetic_text
from trainables.training.captured_step import FEWEST_STEPS, WARM_UP_STEPS, is_pure, is_replayable, replayable
from trainables.training.execution import chosen_execution
from trainables.training.loop import Augmentation, Counters, DivergedError, History, Optimizer, cross_entropy, fit
from trainables.training.sharpness import climb

STEPS = 24
REPLAYED = STEPS - WARM_UP_STEPS


def small_model() -> Classifier:
    generator = torch.Generator().manual_seed(0)
    return build_model("preact_resnet18", num_classes=10, width=2, image_size=8, generator=generator)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return toy_dataset(train=60, test=20).train


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    made = RecordedGraphs()
    monkeypatch.setattr("trainables.training.captured_step.graphs_on", lambda _device: made)
    return made


class Run:
    """One training: what it left."""

    def __init__(self, data: ImageSet | FeatureSet, execution: str, model: nn.Module | None = None, **settings: Any):
        self.model, self.counters = model or small_model(), Counters()
        self.history: History = fit(
            self.model,
            data,
            generator=torch.Generator().manual_seed(1),
            counters=self.counters,
            execution=execution,  # type: ignore[arg-type]
            **{"steps": STEPS, "batch_size": 8, "lr_at": lambda step: 0.05 / (1 + step % 5), **settings},
        )

    def same_as(self, other: Run) -> bool:
        mine, others = self.model.state_dict(), other.model.state_dict()
        return (
            all(torch.equal(mine[name], others[name]) for name in mine)
            and self.history == other.history
            and self.counters == other.counters
        )


@replayable
def smoothed(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(batch), labels, label_smoothing=0.1)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {"augmentation": Augmentation(1, True)},
    "nesterov": {"optimizer": Optimizer("nesterov", 0.8, 1e-3)},
    "no momentum": {"optimizer": Optimizer("sgd", 0.0, 0.0)},
    # Adam divides the rate in float64, so bit for bit needs rates that the graph's float32 holds: powers of two.
    "adam": {"optimizer": Optimizer("adam"), "lr_at": lambda step: 2.0 ** -(9 + step % 3)},
    "adamw": {"optimizer": Optimizer("adamw"), "lr_at": lambda step: 2.0 ** -(9 + step % 3), "grad_clip": 0.1},
    "clipped": {"grad_clip": 0.05},
    "frozen statistics": {"bn_mode": "eval"},
    "sharpness": {"loss": smoothed, "perturb": partial(climb, rho=0.5, adaptive=True)},
    "sharpness, plain": {"perturb": partial(climb, rho=0.5, adaptive=False)},
    "bfloat16": {"precision": "bfloat16"},
    "transformed": {"transform": lambda batch, labels: (batch * 0.9 + 0.1, labels.roll(1))},
    "ended early": {"until": lambda step: step == 17},
}


@pytest.mark.parametrize("way", WAYS)
def test_replayed_steps_are_the_eager_ones_to_the_last_bit(way: str, images: ImageSet, graphs: RecordedGraphs) -> None:
    """Weights, statistics, rates, losses and counts; the schedule moves the rate in every step."""
    eager = Run(images, "eager", **WAYS[way])
    assert graphs.captures == 0
    captured = Run(images, "auto", **WAYS[way])
    made = len(captured.history.loss)
    assert (graphs.warmed_up, graphs.captures, graphs.replays) == (WARM_UP_STEPS, 1, made - WARM_UP_STEPS)
    assert captured.same_as(eager)


def test_a_part_of_the_model_and_a_head_alone_are_trained_as_without(images: ImageSet, graphs: RecordedGraphs) -> None:
    def part(execution: str) -> Run:
        model = small_model()
        return Run(images, execution, model, trainable=list(model.last_block.parameters()))

    assert part("auto").same_as(part("eager"))
    vectors = FeatureSet(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), images.labels[:40])
    heads = [Run(vectors, execution, Head(small_model())) for execution in ("auto", "eager")]
    assert heads[0].same_as(heads[1])
    assert graphs.captures == 2


def test_hooks_between_the_steps_change_what_the_next_replay_starts_from(
    images: ImageSet, graphs: RecordedGraphs
) -> None:
    def halving(model: Classifier, seen: list[float]) -> Callable[[int], None]:
        def hook(_step: int) -> None:
            with torch.no_grad():
                model.classifier.weight.mul_(0.5)
            weight = model.classifier.weight
            assert weight.grad is not None
            seen.append(float(weight.grad.square().sum()))

        return hook

    runs, norms = [], ([], [])
    for execution, seen in zip(("auto", "eager"), norms, strict=True):
        model = small_model()
        runs.append(Run(images, execution, model, after_step=halving(model, seen)))
    assert graphs.replays == REPLAYED
    assert runs[0].same_as(runs[1])
    assert norms[0] == norms[1]


def test_batches_of_another_shape_are_made_as_they_come(images: ImageSet, graphs: RecordedGraphs) -> None:
    def growing() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        steps = iter(range(STEPS))

        def transform(batch: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return (
                (torch.cat([batch, batch[:2]]), torch.cat([labels, labels[:2]]))
                if next(steps) % 3 == 0
                else (
                    batch,
                    labels,
                )
            )

        return transform

    captured, eager = (Run(images, execution, transform=growing()) for execution in ("auto", "eager"))
    # Step 3 is the captured one, of 10 images, as every third.
    assert (graphs.captures, graphs.replays) == (1, 7)
    assert captured.same_as(eager)


def test_what_a_loss_counts_is_counted_in_every_replay(images: ImageSet, graphs: RecordedGraphs) -> None:
    def counting(counters: Counters) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        def loss(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
            counters.forward_samples += 2 * len(batch)
            return cross_entropy(model, batch, labels)

        return replayable(loss, counts=True)

    counters = Counters()
    fit(
        small_model(), images, steps=STEPS, batch_size=8, lr_at=lambda _: 0.01, generator=torch.Generator(),
        loss=counting(counters), counters=counters,
    )  # fmt: skip
    assert graphs.replays == REPLAYED
    assert counters == Counters(steps=STEPS, forward_samples=STEPS * 8 * 3, backward_samples=STEPS * 8)


def hidden() -> RuntimeError:
    """Out of memory, and then the end of the capture fails, too."""
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    return error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (hidden(), "the card has no memory left for it"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "the card has no memory left for it",
        ),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"), "operation not permitted"),
    ],
)
def test_a_capture_that_fails_goes_on_without_and_says_why(
    error: RuntimeError, why: str, images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = RecordedGraphs(error)
    monkeypatch.setattr("trainables.training.captured_step.graphs_on", lambda _device: failing)
    with caplog.at_level(logging.WARNING, "superft.training"):
        captured = Run(images, "auto", perturb=partial(climb, rho=0.5, adaptive=True))
    assert captured.same_as(Run(images, "eager", perturb=partial(climb, rho=0.5, adaptive=True)))
    assert (failing.captures, failing.replays) == (1, 0)
    (line,) = caplog.messages
    assert line.startswith("the training step could not be captured as a CUDA graph and goes on without: ")
    assert why in line
    assert "\n" not in line


def unmarked(model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(model, batch, labels)


def nudge(parameters: Sequence[nn.Parameter]) -> None:
    parameters[0].add_(1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": unmarked},
        {"perturb": nudge},
        {"momentum_at": lambda _step: 0.8},
        {"steps": FEWEST_STEPS - 1},
        {"execution": "eager"},
    ],
    ids=["a loss without mark", "a perturbation without mark", "moving momentum", "few steps", "asked for"],
)
def test_what_cannot_or_need_not_be_captured_is_not_tried(
    settings: dict[str, Any], images: ImageSet, graphs: RecordedGraphs
) -> None:
    Run(images, settings.pop("execution", "auto"), **settings)
    assert (graphs.warmed_up, graphs.captures) == (0, 0)


def test_a_model_that_draws_in_its_forward_pass_is_found_out_before_the_capture(
    images: ImageSet, graphs: RecordedGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    """A replay would use the masks of one step for ever."""

    def dropping() -> Classifier:
        return build_model(
            "encoder_resnet18", num_classes=10, width=2, image_size=8, generator=torch.Generator().manual_seed(0)
        )

    with caplog.at_level(logging.INFO, "superft.training"):
        captured = Run(images, "auto", dropping())
    assert (graphs.warmed_up, graphs.captures) == (WARM_UP_STEPS, 0)
    assert "computes aten.rand" in caplog.text
    assert captured.same_as(Run(images, "eager", dropping()))


def test_a_hook_that_gives_a_weight_other_memory_ends_the_replays(images: ImageSet, graphs: RecordedGraphs) -> None:
    def swapping(model: Classifier) -> Callable[[int], None]:
        def hook(step: int) -> None:
            if step == 9:
                model.classifier.weight.data = 0.5 * model.classifier.weight.data

        return hook

    runs = []
    for execution in ("auto", "eager"):
        model = small_model()
        runs.append(Run(images, execution, model, after_step=swapping(model)))
    assert graphs.replays == 10 - WARM_UP_STEPS
    assert runs[0].same_as(runs[1])


def test_a_diverged_run_is_noticed_when_replayed(images: ImageSet, graphs: RecordedGraphs) -> None:
    with pytest.raises(DivergedError):
        Run(images, "auto", steps=60, lr_at=lambda _: 1e9)
    assert graphs.captures == 1


def test_a_stale_python_number_in_a_captured_step_would_be_seen(images: ImageSet, graphs: RecordedGraphs) -> None:
    """The stand-in freezes what Python computes, as a graph does: here a weight of the loss that grows."""

    def growing() -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        steps = iter(range(STEPS))
        return replayable(lambda model, batch, labels: next(steps) * cross_entropy(model, batch, labels))

    captured, eager = (Run(images, execution, loss=growing()) for execution in ("auto", "eager"))
    assert not captured.same_as(eager)


def test_marks_are_seen_through_partials_and_methods() -> None:
    class Method:
        @replayable
        def loss(self, model: nn.Module, batch: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(model, batch, labels)

    assert is_replayable(None)
    assert is_replayable(partial(partial(climb, rho=1.0), adaptive=True))
    assert is_pure(Method().loss)
    assert not is_replayable(unmarked)
    counting = replayable(lambda: None, counts=True)
    assert is_replayable(counting)
    assert not is_pure(counting)


def test_the_environment_chooses_how_steps_are_made(
    images: ImageSet, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen_execution() == "auto"
    monkeypatch.setenv("SUPERFT_STEP", "eager")
    fit(small_model(), images, steps=STEPS, lr_at=lambda _: 0.1, batch_size=8, generator=torch.Generator())
    assert graphs.captures == 0
    monkeypatch.setenv("SUPERFT_STEP", "quick")
    with pytest.raises(SettingError, match=r"^SUPERFT_STEP must be auto, eager or compiled, got 'quick'$"):
        fit(small_model(), images, steps=STEPS, lr_at=lambda _: 0.1, batch_size=8, generator=torch.Generator())


def test_compiled_steps_are_another_arithmetic_and_the_graph_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and the memo tell them apart."""
    text, cpu = {}, torch.device("cpu")
    for way in ("auto", "eager", "compiled"):
        monkeypatch.setenv("SUPERFT_STEP", way)
        text[way] = arithmetic_text(arithmetic(cpu, "float32"))
    assert text["auto"] == text["eager"]
    assert text["compiled"] == f"{text['eager']}, compiled"


@pytest.mark.parametrize("loss", [cross_entropy, unmarked], ids=["pure", "not marked"])
def test_only_a_pure_loss_is_compiled(
    loss: Callable[..., Tensor], images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself takes half a minute, and `benchmarks.gpu` runs it; here is who gets to it."""
    compiled = []

    def compile_(function: Callable[..., Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
        assert not dynamic
        compiled.append(function)
        return function

    monkeypatch.setattr("torch.compile", compile_)
    run = Run(images, "compiled", loss=loss, steps=3)
    assert compiled == ([cross_entropy] if loss is cross_entropy else [])
    assert run.same_as(Run(images, "eager", loss=loss, steps=3))


def test_a_copy_of_a_model_taken_between_replays_is_its_own(images: ImageSet, graphs: RecordedGraphs) -> None:
    model, copies = small_model(), []
    Run(images, "auto", model, after_step=lambda _step: copies.append(copy.deepcopy(model.state_dict())))
    weights = torch.stack([state["classifier.weight"] for state in copies])
    assert len(weights.unique(dim=0)) == STEPS
