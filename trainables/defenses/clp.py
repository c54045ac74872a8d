"""Channel Lipschitz pruning (Zheng et al. 2022, arXiv:2208.03111)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from trainables.defenses.base import Defense, NoData, Repair, register
from trainables.defenses.pruning import require_batch_norm
from trainables.models.channels import batch_norms, lipschitz_bounds, outliers, trace_convolutions
from trainables.models.classifier import Classifier
from trainables.settings import AtLeast
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer


@register("clp")
@dataclass(frozen=True)
class ChannelLipschitzPruning(Defense):
    """Prune the channels that can amplify their input far more than the others of their layer. Needs no data.

    For output channel k of a convolution with BatchNorm behind it the bound is |gamma_k| / sqrt(var_k + eps) times the
    largest singular value of the kernel W_k as a C_in x k^2 matrix. A channel goes (gamma = beta = 0) where that is
    more than mean + u std of its layer (sample standard deviation, as in the public code).

    A layer of n channels never has one beyond (n - 1) / sqrt(n) standard deviations: at u = 3 only layers of 11
    channels or more can lose any.

    Args:
        u: standard deviations above the mean, >= 0; infinity prunes nothing. The paper has 3, and 5 for Tiny ImageNet.
        pair_mode: BNs whose input is a sum (pre-activation nets) have no convolution of their own: ``skip`` them, or
            take the ``last_conv`` that went into the sum.
    """

    owns: ClassVar[type[NoData]] = NoData

    u: Annotated[float, AtLeast(0, infinite=True)] = 3.0
    pair_mode: Literal["skip", "last_conv"] = "skip"

    def needs(self) -> frozenset[str]:
        return frozenset({"batch_norm", "convolutions"})

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_batch_norm(model, self.name)

    @torch.no_grad()
    def repair(self, model: Classifier, assets: NoData, trainer: Trainer) -> Repair:
        self.check(model, 0)
        pairs, _ = trace_convolutions(model)
        trainer.counters.forward_samples += 1
        norms, pruned, looked_at = batch_norms(model), 0, 0
        for pair in pairs:
            if not pair.direct and self.pair_mode == "skip":
                continue
            norm, chosen = norms[pair.norm], outliers(lipschitz_bounds(model, pair), self.u)
            norm.weight.masked_fill_(chosen, 0.0)
            norm.bias.masked_fill_(chosen, 0.0)
            pruned, looked_at = pruned + int(chosen.sum()), looked_at + len(chosen)
        notes = {"pruned": pruned, "channels": looked_at}
        return Repair(model.eval(), status="ok" if pruned else "abstained", notes=notes)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return Counters(forward_samples=1)  # which convolution feeds which BatchNorm
