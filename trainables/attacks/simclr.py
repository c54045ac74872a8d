"""SimCLR (Chen et al. 2020, arXiv:2002.05709) as BadEncoder's authors run it: an encoder from images without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import ImageSet
from trainables.machine.transfer import sent_ahead
from trainables.models.classifier import Classifier, Head
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, History, Optimizer, training_work
from trainables.training.trainer import Trainer

PROJECTION = 128
# Of the luma that greyscale pictures are made of (ITU-R 601).
LUMA = (0.299, 0.587, 0.114)
# How often a crop that would not fit is drawn again before the whole image is taken.
CROP_TRIES = 10


@dataclass(frozen=True)
class Views:
    """Random views of float images in [0, 1], (N, 3, H, W): each sample has its own draw. No blur.

    One difference to the usual pictures-one-by-one code: the order of the four colour changes is drawn per batch.

    Args:
        crop: smallest share of the area that a resized crop takes (the largest is 1); None: no crop. Aspect ratios go
            from 3/4 to 4/3, uniform in their logarithm.
        flip: probability of a horizontal flip.
        strength: brightness, contrast and saturation change by factors in 1 +- this.
        hue: turned by at most this share of the circle, either way.
        jitter: probability of the colour changes.
        grey: probability of a greyscale picture.
    """

    crop: float | None = 0.08
    flip: float = 0.5
    strength: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A view of every image, on its device; all draws come from ``generator`` (CPU)."""
        # One table of draws and one transfer, whatever is switched on.
        table = torch.rand(len(images), 2 * CROP_TRIES + 9, generator=generator)
        order = torch.randperm(4, generator=generator).tolist()
        draws = sent_ahead(table, images.device)
        placed, (flips, jittered, grey) = draws[:, 9:], draws[:, :3].T
        if self.crop is not None or (table[:, 0] < self.flip).any():
            images = self._resample(images, placed, draws[:, 3:5], flips < self.flip)
        coloured = self._colour(images, draws[:, 5:9], order)
        images = torch.where((jittered < self.jitter)[:, None, None, None], coloured, images)
        return torch.where((grey < self.grey)[:, None, None, None], luma(images).expand_as(images), images)

    def _resample(self, images: Tensor, sizes: Tensor, places: Tensor, flips: Tensor) -> Tensor:
        """Crop, resize and flip in one resampling."""
        height = width = torch.ones(len(images), device=images.device)
        if self.crop is not None:
            area = self.crop + (1.0 - self.crop) * sizes[:, :CROP_TRIES]
            ratio = (4.0 / 3.0) ** (2.0 * sizes[:, CROP_TRIES:] - 1.0)
            tries = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2)
            fits = (tries <= 1.0).all(2)
            first = tries[torch.arange(len(tries), device=tries.device), fits.float().argmax(1)]
            height, width = torch.where(fits.any(1)[:, None], first, torch.ones_like(first)).T
        theta = images.new_zeros(len(images), 2, 3)
        theta[:, 0, 0] = torch.where(flips, -width, width)
        theta[:, 1, 1] = height
        # The grid goes from -1 to 1, so 1 - height is how far the crop's centre may move either way.
        theta[:, 1, 2] = (1.0 - height) * (2.0 * places[:, 0] - 1.0)
        theta[:, 0, 2] = (1.0 - width) * (2.0 * places[:, 1] - 1.0)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp_(0.0, 1.0)

    def _colour(self, images: Tensor, draws: Tensor, order: list[int]) -> Tensor:
        turned = 2.0 * draws - 1.0
        factors, shifts = (1.0 + self.strength * turned[:, :3])[:, :, None, None, None], self.hue * turned[:, 3]
        for change in order:
            match change:
                case 0:
                    images = (images * factors[:, 0]).clamp(0.0, 1.0)
                case 1:
                    mean = luma(images).mean((1, 2, 3), keepdim=True)
                    images = (mean + (images - mean) * factors[:, 1]).clamp(0.0, 1.0)
                case 2:
                    faded = luma(images)
                    images = (faded + (images - faded) * factors[:, 2]).clamp(0.0, 1.0)
                case _:
                    images = turn_hue(images, shifts)
        return images


def luma(images: Tensor) -> Tensor:
    """Greyscale of float images (N, 3, H, W): (N, 1, H, W)."""
    # Filled on the device: a constant of several numbers would be copied there, and waited for.
    weights = torch.cat([images.new_full((1, 1, 1), weight) for weight in LUMA])
    return (images * weights).sum(1, keepdim=True)


def turn_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Float images (N, 3, H, W) in [0, 1] with their hues turned by ``shifts`` (N,), in turns of the circle.

    Value and saturation of HSV stay as they are.
    """
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    offsets = torch.arange(5, 0, -2, dtype=images.dtype, device=images.device).view(3, 1, 1)  # 5, 3, 1
    k = (offsets + (hue + 6.0 * shifts[:, None, None])[:, None]) % 6.0
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """Mean over all 2B views of -log(exp(z z+ / T) / sum over the 2B - 1 others of exp(z z' / T)).

    Args:
        projections: (2B, D), the second views behind the first ones in the same order; scaled to length 1 here.
        temperature: T, > 0.
    """
    z = functional.normalize(projections.float(), dim=1)
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partners = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return functional.cross_entropy(similarity, partners)


class Contrast(nn.Module):
    """An encoder with the projector that only the contrastive loss looks through: (N, 3, H, W) to (N, 128)."""

    def __init__(self, encoder: Classifier, generator: torch.Generator) -> None:
        super().__init__()
        first = next(layer for layer in Head(encoder).modules() if isinstance(layer, nn.Linear))
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.projector = nn.Sequential(
                nn.Linear(first.in_features, 512, bias=False),
                nn.BatchNorm1d(512),
                nn.ReLU(),
                nn.Linear(512, PROJECTION),
            ).to(next(encoder.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        projections: Tensor = self.projector(self.encoder.embed(images))
        return projections


def pretrain(
    model: Classifier,
    images: Tensor,
    trainer: Trainer,
    *,
    epochs: float,
    lr: float,
    batch_size: int,
    temperature: float = 0.5,
    views: Views | None = None,
) -> History:
    """Train ``model`` up to its embeddings, in place; its head is left alone.

    Adam with weight decay 1e-6 at a constant rate; every image is seen in two views per step, and both are counted.

    Args:
        images: uint8, (N, 3, H, W), on the device; labels are not needed.
        epochs: passes over them; ceil(N / batch_size) steps each.
        lr: 1e-3 in the authors' code, 3e-4 in Sha et al.
        batch_size: images per step.
        temperature: of the loss.
    """
    views, generator = views or Views(), trainer.generator("simclr-views")
    contrast = Contrast(model, trainer.generator("simclr-projector"))
    head = {id(parameter) for parameter in Head(model).parameters()}

    def two_views(batch: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([views(batch, generator), views(batch, generator)]), torch.cat([labels, labels])

    return trainer.fit(
        contrast,
        unlabelled(images),
        purpose="simclr",
        steps=steps_of(epochs, len(images), batch_size),
        lr_at=schedules.constant(lr),
        batch_size=batch_size,
        optimizer=Optimizer("adam", weight_decay=1e-6),
        transform=two_views,
        loss=replayable(lambda contrast, batch, _labels: nt_xent(contrast(batch), temperature)),
        trainable=[parameter for parameter in contrast.parameters() if id(parameter) not in head],
    )


def pretraining_work(epochs: float, n: int, batch_size: int) -> Counters:
    """Work of `pretrain` on ``n`` images."""
    return training_work(steps_of(epochs, n, batch_size), 2 * min(batch_size, n), 2 * n)


def unlabelled(images: Tensor) -> ImageSet:
    """Images for the training loop, which wants labels: all 0, and no loss reads them."""
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))


def steps_of(epochs: float, n: int, batch_size: int) -> int:
    """Optimiser steps of ``epochs`` over ``n`` images, at least 1."""
    return max(1, round(epochs * -(-n // batch_size)))


def knn_accuracy(
    vectors: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    neighbours: int = 200,
    temperature: float = 0.5,
    queries: int = 2000,
) -> float:
    """How well nearest neighbours tell the classes apart: what an encoder is worth before anything is trained on it.

    A fifth of the vectors (at most ``queries``) is classified by the others, each of the nearest voting with
    exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978).

    Args:
        vectors: embeddings, float (N, D), N >= 2.
        labels: int64, (N,).
        neighbours: how many vote; cut to a tenth of the mean size of a class, beyond which the others outvote it.
    """
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    held_out = max(1, min(queries, len(vectors) // 5))
    asked, bank = order[:held_out], order[held_out:]
    known, votes_for = functional.normalize(vectors[bank], dim=1), labels[bank]
    count = min(neighbours, max(1, len(bank) // (10 * num_classes)))
    right = 0
    for part in asked.split(250):
        cosines, nearest = (functional.normalize(vectors[part], dim=1) @ known.T).topk(count)
        votes = torch.zeros(len(part), num_classes, device=vectors.device)
        votes.scatter_add_(1, votes_for[nearest], (cosines / temperature).exp())
        right += int((votes.argmax(1) == labels[part]).sum())
    return right / held_out
