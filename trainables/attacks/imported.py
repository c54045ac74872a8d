"""A victim that somebody else made: its weights, poisoned samples and triggered test images, read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.attacks.base import Attack, Implanted, Kind, PoisonedSamples, register
from trainables.attacks.peer import read_peer
from trainables.attacks.recorded import PeerVictim
from trainables.attacks.triggers import Trigger, trigger_kind
from trainables.data.images import DataError, ImageSet, TriggeredSet
from trainables.registry import SettingError
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@trigger_kind("recorded")
class RecordedTrigger(Trigger):
    """What a trigger made of some test images; what it makes of others is not known.

    Args:
        image_size: in pixels.
        count: number of images; the buffers are ``images`` uint8 (M, 3, H, W), ``sources`` and ``targets`` int64 (M,).
    """

    applies: ClassVar[bool] = False
    images: Tensor
    sources: Tensor
    targets: Tensor

    def __init__(self, image_size: int, count: int) -> None:
        super().__init__()
        self.image_size, self.count = image_size, count
        self.register_buffer("images", torch.zeros(count, 3, image_size, image_size, dtype=torch.uint8))
        self.register_buffer("sources", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("targets", torch.zeros(count, dtype=torch.int64))

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "count": self.count}

    def forward(self, images: Tensor) -> Tensor:
        raise DataError(
            "the trigger of an imported victim is known by its test images alone; it cannot be put on others"
        )


@register("imported")
@dataclass(frozen=True)
class Imported(Attack):
    """A backdoored model that somebody else made, of BackdoorBench or of a victim.json; nothing is trained.

    Args:
        path: of an attack_result.pt, or of a folder with a victim.json; the folders of its images lie beside it. Target
            and labels come from there, so the fields target_label, label_mode and label_shift must stay at their
            defaults.
    """

    offered: ClassVar[bool] = False
    trigger_applies: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path must name an attack_result.pt, or the folder of a victim.json, got nothing")
        if (self.target_label, self.label_mode, self.label_shift) != (0, "all_to_one", 1):
            raise ValueError("target_label, label_mode and label_shift come with the file; leave them out")

    @property
    def peer(self) -> PeerVictim:
        """What the file holds (DataError)."""
        return read_peer(self.path)

    @property
    def releases_training_set(self) -> bool:
        return self.peer.train is not None

    def identity(self) -> dict[str, Any]:
        return {"attack": self.name, "sha256": self.peer.digest}  # wherever the file lies

    def control(self) -> tuple[str, dict[str, Any]]:
        # Nobody has the clean model that its maker's recipe gives, so that there is no ASR-base.
        return self.name, {"path": self.path}

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        peer = self.peer
        if (peer.num_classes, peer.image_size) != (num_classes, image_size):
            raise SettingError(
                f"attack.{self.name}: {self.path} has {peer.num_classes} classes and images of {peer.image_size} "
                f"pixels, the data set has {num_classes} and {image_size}"
            )
        if peer.train is not None:
            _check_labels(self.path, "training", peer.train.n, peer.train.indices, peer.train.original, labels)

    def check_target(self, num_classes: int) -> None:
        self.targets(torch.arange(num_classes), num_classes)

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        test = self.peer.test
        target_of = torch.arange(max(num_classes, self.peer.num_classes))
        target_of[test.original] = test.given
        if not torch.equal(target_of[test.original], test.given):
            raise SettingError(f"attack.{self.name}: {self.path} sends images of one class to several targets")
        return target_of.to(labels.device)[labels]

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        peer, model = self.peer, trainer.fresh_model()
        own = {name: tensor for name, tensor in model.state_dict().items() if _is_of(name, peer)}
        apart = sorted(own.keys() ^ peer.state.keys())
        apart += [name for name in own.keys() & peer.state.keys() if own[name].shape != peer.state[name].shape]
        if apart:
            some = ", ".join(apart[:4]) + (f" and {len(apart) - 4} more" if len(apart) > 4 else "")
            raise SettingError(
                f"attack.{self.name}: {self.path} holds a {peer.model} whose weights do not fit the model of this "
                f"study; set model and width as they are there ({some})"
            )
        model.load_state_dict(dict(peer.state), strict=False)
        poisoned = PoisonedSamples.none(train)
        if peer.train is not None:
            kinds = peer.train.kinds
            if kinds is None:
                # A file that does not say it may hold samples under their own label, as WaNet's noise samples are.
                wanted = self.targets(peer.train.original, peer.num_classes)
                kinds = torch.where(peer.train.given == wanted, Kind.POISON, Kind.CROSS).to(torch.uint8)
            appended = peer.train.appended
            if appended is not None and not bool(appended.any()):
                appended = None
            poisoned = PoisonedSamples(peer.train.indices, peer.train.images, peer.train.given, kinds, appended)
        trigger = RecordedTrigger(peer.image_size, len(peer.test.indices))
        trigger.images, trigger.sources, trigger.targets = peer.test.images, peer.test.indices, peer.test.given
        return Implanted(model.eval(), trigger, poisoned)

    def triggered_test(self, trigger: Trigger, test: ImageSet, num_classes: int) -> TriggeredSet:
        recorded = self.peer.test
        _check_labels(self.path, "test", recorded.n, recorded.indices, recorded.original, test.labels)
        found = TriggeredSet(recorded.images, recorded.original, recorded.given, recorded.indices)
        return found.to(test.images.device)


def _is_of(name: str, peer: PeerVictim) -> bool:
    """Whether a tensor of our model is one that the file is to have: what images are normalised with it may not say."""
    return not name.startswith("normalize.") or name in peer.state


def _check_labels(path: str, which: str, n: int, indices: Tensor, original: Tensor, labels: Tensor) -> None:
    """Refuse a data set that is not the one, in the same order, that a file was made with (SettingError)."""
    if n != len(labels):
        raise SettingError(f"attack.imported: {path} was made with {n} {which} images, here are {len(labels)}")
    wrong = int((labels.cpu()[indices] != original).sum())
    if wrong:
        raise SettingError(
            f"attack.imported: {path}: {wrong} of {len(indices)} {which} images have another label here; it was made "
            "with another data set, or one in another order"
        )
