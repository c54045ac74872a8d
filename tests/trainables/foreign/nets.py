"""Models as people bring them, small: a plain CNN, one without a linear head, a transformer; none knows of superft."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from superft.testing.toy_victims import toy
from trainables.foreign.images import CleanImages

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.25)


class PlainCNN(nn.Module):
    """Three convolutions, the second and third of stride 2, with BatchNorm; functional ReLUs and pool; dropout."""

    def __init__(self, num_classes: int = 10, width: int = 8, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)
        self.block3 = nn.Sequential(
            nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width)),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.fc(self.dropout(self.block3(x).mean((2, 3))))


class Headless(nn.Module):
    """A convolution gives a map for every class, whose mean is the logit; no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.conv(x))).mean((2, 3))


def tiny_vit() -> nn.Module:
    """torchvision's vision transformer for 16 pixels, two blocks of width 16."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )


def plain_cnn(num_classes: int = 10) -> PlainCNN:
    """As a user's own function: for ``--arch``."""
    return PlainCNN(num_classes)


def own_images() -> CleanImages:
    """The 200 training images of the toy task, as a user's own."""
    data = toy()
    return CleanImages(data.train, data.classes, "own")


def trained(steps: int = 120, num_classes: int = 10) -> PlainCNN:
    """A PlainCNN that is right about most of the toy's images, trained in plain torch."""
    torch.manual_seed(0)
    model, data = PlainCNN(num_classes), toy().train
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    images = (data.images.float() / 255.0 - mean) / std
    updater = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for step in range(steps):
        chosen = torch.arange(50 * step, 50 * step + 50) % len(images)
        loss = functional.cross_entropy(model(images[chosen]), data.labels[chosen])
        updater.zero_grad()
        loss.backward()
        updater.step()
    return model.eval()
