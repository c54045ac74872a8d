"""The form every model of the study takes: normalise, stages, neck, one linear head."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Per-channel (x - mean) / std inside the model, so that triggers and defenses work on pixels in [0, 1].

    The constants are persistent buffers: a stored victim keeps the normalisation it was trained with, also when it is
    fine-tuned on another data set.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """Image classifier whose parts the attacks and defenses can address by name, whatever the architecture.

    ``stages`` are applied in order, each from feature maps to feature maps; ``neck`` pools the last maps to vectors;
    ``classifier`` is the only linear layer after them. So "the last block", "stage 3" (NAD, Spectral) or "penultimate
    features" mean the same thing for every family.

    What a model must offer (`superft.testing.models` holds every registered one to it):

    - one stage or more, the same number in every model of its name; each maps (N, C, H, W) to maps as large or smaller,
      and none overwrites its input in place: a forward hook on a stage sees what the next one received;
    - a last child of the last stage that has parameters: `last_block`, which some defenses tune alone;
    - a neck without a linear layer, from the last maps to vectors (N, D);
    - `classifier`, one ``nn.Linear``, whose outputs are the classes. A head of more layers overrides `head` and
      `head_features`, so that `embed`, `features` and `logits` still follow one another;
    - float32 logits, also under autocast;
    - initial weights from the generator of `build_model` alone, and a new head from that of `reset_head` alone;
    - no random number from PyTorch's global generator in a forward pass, in training mode either (no ``nn.Dropout``);
    - in eval mode the same logits for an image whoever else is in the batch;
    - all that it has learned in parameters and buffers, so that a state dict brings it back;
    - a gradient for every parameter;
    - a smallest image size, smaller ones being refused before any work; where its width can be set, more parameters
      for a larger one.
    """

    # Side of the grey image that shows which layers feed which; a model that takes one size alone says its own.
    probe_size: int = 32

    def __init__(
        self,
        stages: Iterable[nn.Module],
        neck: nn.Module,
        classifier: nn.Linear,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stages = nn.ModuleList(stages)
        self.neck = neck
        self.classifier = classifier

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return self.classifier.out_features

    @property
    def last_block(self) -> nn.Module:
        """The last block of the last stage: residual block, dense block, or conv-BN-ReLU."""
        return list(self.stages[-1].children())[-1]

    def map_sizes(self, image_size: int) -> list[tuple[int, int]]:
        """Height and width of every stage's maps, of square images of so many pixels; nothing is computed."""
        maps = torch.empty(1, 3, image_size, image_size, device="meta")
        sizes = []
        for stage in copy.deepcopy(self.stages).to("meta").eval():
            maps = stage(maps)
            sizes.append((int(maps.shape[-2]), int(maps.shape[-1])))
        return sizes

    @property
    def head(self) -> list[nn.Module]:
        """What a user replaces who takes the model over for another task: everything behind `embed`."""
        return [self.classifier]

    def reset_head(self, generator: torch.Generator) -> None:
        """Initialise the head anew, from ``generator`` alone (one integer is drawn from it)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for layer in Head(self).modules():
                if isinstance(layer, nn.Linear):
                    fresh = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                    layer.load_state_dict(fresh.state_dict())

    def embed(self, images: Tensor) -> Tensor:
        """What the encoder makes of float images in [0, 1], (N, 3, H, W): the vectors before the head, (N, D)."""
        maps = self.normalize(images)
        for stage in self.stages:
            maps = stage(maps)
        vectors: Tensor = self.neck(maps)
        return vectors

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features, (N, D), of float images in [0, 1], (N, 3, H, W): the inputs of ``classifier``."""
        return self.head_features(self.embed(images))

    def head_features(self, vectors: Tensor) -> Tensor:
        """Penultimate features, (N, D), of what `embed` gave: here the vectors themselves."""
        return vectors

    def logits(self, features: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes), of penultimate features.

        In float32 whatever the autocast: bfloat16 has 8 bits, two classes of a close image would often tie, and argmax
        takes the lower one of them.
        """
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 (N, num_classes), of float images in [0, 1], (N, 3, H, W)."""
        return self.logits(self.features(images))


class Head(nn.Module):
    """A model's head alone, from the vectors of `Classifier.embed` to logits: trained without the encoder's cost."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.parts = nn.ModuleList(model.head)
        self._model = [model]  # not a submodule: the encoder is no part of the head

    def forward(self, vectors: Tensor) -> Tensor:
        model = self._model[0]
        return model.logits(model.head_features(vectors))
