"""I-BAU: unlearning of adversarial perturbations by implicit hypergradients (Zeng et al. 2022, arXiv:2110.03735)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.data.images import ImageSet
from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, published_steps, register
from trainables.defenses.perturbation import PerRound, pixel_scale, rounds, seek_perturbation, within
from trainables.models.classifier import Classifier
from trainables.settings import Above, Count, CountOrZero, Positive, PositiveShare
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer

# One pass of the authors' code: 5,000 images in batches of 100. It makes five rounds of two passes, one for each side.
PASS = published_steps(epochs=1, images=5000, batch_size=100)
# Decay of the perturbation while it is searched, and the step of the fixed-point map: the authors'.
PERTURBATION_DECAY = 1e-3
FIXED_POINT_STEP = 0.1


@register("ibau")
@dataclass(frozen=True)
class ImplicitUnlearning(Defense):
    """Unlearn the one perturbation that fools the model on all images: min over weights of max over delta.

    Each round searches delta anew, (3, H, W), added to every image: ``inner_steps`` of gradient ascent on clean images.
    Then ``round_steps`` of Adam on CE(f(x + delta), y), whose gradient also accounts for how the best delta moves with
    the weights (`implicit_loss`); plain adversarial training (``fixed_point_iterations=0``) takes delta as given.

    The defaults are those of the authors' code: 5 rounds of 50 and 50 steps (5,000 images in batches of 100).
    BackdoorBench makes 5 of 10 and 10 (2,500 images, 256) at a tenth of the rate, backdoor-toolbox 3 of 20 and 20.

    Delta and its norm are in pixels, [0, 1] images, and delta is not clipped to the image range. The published steps
    (rate 10 and 0.1) are for normalised images; both are multiplied by std^2 here, which makes the loss move delta as
    there, seen in pixels; its decay, which is of the norm in pixels, is weaker by std^2. (As they stand they would be
    some ten times longer: on 16-pixel digits delta then ran into a bound of 10 within a round and the repair ruined the
    model.) Everything runs in float32 and with frozen running statistics; it needs second derivatives, some three times
    the memory of training. A product with the second derivative costs about twice the backward pass that it is counted
    as.

    Args:
        steps: optimiser steps in all, >= 0.
        round_steps: optimiser steps against one perturbation, >= 1; then it is sought anew.
        inner_steps: steps of the ascent on delta, >= 1.
        fixed_point_iterations: terms K of the hypergradient's series, >= 0.
        lr: learning rate of Adam on the weights, > 0.
        inner_lr: step of the ascent on delta, > 0, in units of normalised images.
        norm_bound: largest ||delta||_2 in pixels, > 0, or None for none (the public code; the paper has 10).
        patch_portion: share of each batch that delta is added to, in (0, 1], at least one image. 1 is the paper's
            objective, the authors' code has 0.01: there almost all of the loss is clean.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {
        "rounds": "lengths count in optimiser steps: give steps (in all) and round_steps (against one perturbation)"
    }

    steps: CountOrZero = 5 * PASS
    round_steps: Count = PASS
    inner_steps: Count = PASS
    fixed_point_iterations: CountOrZero = 5
    lr: Positive = 1e-3
    inner_lr: Positive = 10.0
    norm_bound: Annotated[float, Above(0, "or none")] | None = None
    patch_portion: PositiveShare = 0.01
    batch_size: Count = 100
    augment: bool = True

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        data = assets.train
        perturbation = PerRound(
            self.round_steps, lambda round_: self.find_perturbation(model, data, trainer, round_=round_)
        )

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                return self.unlearning_loss(model, images, labels, perturbation.next(), trainer.counters)

        with sdpa_kernel(SDPBackend.MATH):  # the fast forms of attention have no second derivative
            history = trainer.fit(
                model,
                data,
                steps=self.steps,
                lr_at=schedules.constant(self.lr),
                batch_size=images_per_step(self.batch_size, len(data)),
                optimizer=Optimizer("adam", weight_decay=0.0),
                augmentation=trainer.augmentation() if self.augment else None,
                bn_mode="eval",
                loss=loss,
            )
        return Repair(model, history=history, notes={"perturbation_norm": float(perturbation.current.norm())})

    def find_perturbation(self, model: nn.Module, data: ImageSet, trainer: Trainer, *, round_: int) -> Tensor:
        """The perturbation of a round, (1, 3, H, W): away from what the model predicts now."""

        def loss(images: Tensor, _labels: Tensor, delta: Tensor) -> Tensor:
            trainer.counters.forward_samples += len(images)  # the prediction
            return inner_loss(model, images, predictions(model, images), delta)

        def bounded(delta: Tensor) -> Tensor:
            return delta if self.norm_bound is None else within(delta, delta.norm(), self.norm_bound)

        return seek_perturbation(
            model,
            data,
            trainer,
            loss=loss,
            rate=self.inner_lr * pixel_scale(model),
            steps=self.inner_steps,
            bounded=bounded,
            batch_size=images_per_step(self.batch_size, len(data)),
            augment=self.augment,
            round_=round_,
        )

    def unlearning_loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, delta: Tensor, counters: Counters
    ) -> Tensor:
        """Cross-entropy under ``delta``, with the hypergradient as its gradient in the weights."""
        patched = torch.zeros(len(images), 1, 1, 1, device=images.device)
        patched[: max(1, int(self.patch_portion * len(images)))] = 1.0  # the batch is in random order

        def outer(delta: Tensor) -> Tensor:
            return functional.cross_entropy(model(images + patched * delta), labels)

        if self.fixed_point_iterations == 0:
            return outer(delta)
        predicted = predictions(model, images)
        count = len(images)
        counters.forward_samples += 2 * count  # the prediction and the inner loss
        counters.input_backward_samples += 2 * count  # slopes of outer and inner loss in delta
        counters.backward_samples += self.fixed_point_iterations * count  # K - 1 products, and one with the weights
        return implicit_loss(
            outer,
            lambda delta: inner_loss(model, images, predicted, delta),
            delta,
            iterations=self.fixed_point_iterations,
            step=FIXED_POINT_STEP * pixel_scale(model),
        )

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        batch = images_per_step(self.batch_size, n_owned)
        samples, sought = self.steps * batch, rounds(self.steps, self.round_steps) * self.inner_steps * batch
        implicit = self.fixed_point_iterations > 0
        return Counters(
            steps=self.steps,
            forward_samples=samples * (3 if implicit else 1) + 2 * sought,
            backward_samples=samples * (1 + self.fixed_point_iterations),
            input_backward_samples=samples * (2 if implicit else 0) + sought,
        )


@torch.no_grad()
def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Labels that the model gives the images, int64 (N,)."""
    found: Tensor = model(images).argmax(1)
    return found


def inner_loss(model: nn.Module, images: Tensor, predicted: Tensor, delta: Tensor) -> Tensor:
    """What the perturbation minimises: minus the cross-entropy of the predictions, and a little of its own norm."""
    return PERTURBATION_DECAY * delta.square().sum() - functional.cross_entropy(model(images + delta), predicted)


def implicit_loss(
    outer: Callable[[Tensor], Tensor],
    inner: Callable[[Tensor], Tensor],
    delta: Tensor,
    *,
    iterations: int,
    step: float | Tensor,
) -> Tensor:
    """``outer(delta)``, whose gradient in the weights is the implicit hypergradient after K fixed-point iterations.

    With Phi(d) = d - step * grad_d inner(d), whose fixed point the best perturbation is: v_0 = 0,
    v_k = (dPhi/dd)^T v_(k-1) + d outer/dd, and the gradient is d outer/dw + (dPhi/dw)^T v_K. With K = 0 that is the
    plain gradient at a given ``delta``.

    Args:
        outer, inner: functions of the perturbation that read the weights.
        delta: where the inner problem was (about) solved.
        iterations: K, >= 0.
        step: of the map, a number or a tensor that fits ``delta``.
    """
    delta = delta.detach().requires_grad_(True)
    loss = outer(delta)
    if iterations == 0:
        return loss
    (pull,) = torch.autograd.grad(loss, delta, retain_graph=True)
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    moved = delta - step * slope
    v = pull
    for _ in range(iterations - 1):
        (product,) = torch.autograd.grad(moved, delta, grad_outputs=v, retain_graph=True)
        v = product + pull
    # Adds nothing to the value; its gradient in the weights is (dPhi/dw)^T v.
    implicit = (moved * v).sum()
    return loss + implicit - implicit.detach()
