"""What the user's task is to the attacker: the same one, another one under a new head, or one on a released encoder.

``standalone``: the attacker released a classifier for the very task. ``new_head``: a classifier for another task; the
user puts a new head on it (transfer learning). ``encoder``: an encoder that was trained without labels on other images;
the user trains a head on it.
"""

from __future__ import annotations

from typing import Literal

from trainables.attacks.base import Attack
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.models.classifier import Classifier, Head
from trainables.registry import SettingError
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

ScenarioName = Literal["standalone", "new_head", "encoder"]

# How a new head is trained on the whole data set, with the rest of the model fixed: what a user has who does no more.
PROBE = TrainingRecipe(epochs=100, batch_size=64, lr=0.02, optimizer="adam", weight_decay=0.0)


def check_scenario(scenario: ScenarioName, attack: Attack, dataset: Dataset, upstream: Dataset | None) -> None:
    """Refuse what does not go together, before any work.

    Args:
        dataset: the user's.
        upstream: the attacker's, where it is another one.

    Raises:
        DataError, SettingError: one line.
    """
    if (upstream is None) != (scenario == "standalone"):
        raise DataError(f"scenario {scenario} {'needs an' if upstream is None else 'has no'} upstream data set")
    if upstream is None:
        return
    if upstream.fingerprint == dataset.fingerprint:
        raise DataError(
            f"scenario {scenario} needs two data sets, and {dataset.name} is also the upstream one; "
            "use scenario standalone"
        )
    if upstream.image_size != dataset.image_size:
        raise DataError(
            f"upstream images have {upstream.image_size} pixels and those of {dataset.name} {dataset.image_size}: "
            f"set image_size to {upstream.image_size}"
        )
    if (scenario == "encoder") != attack.releases_encoder:
        raise SettingError(
            f"attack {attack.name} releases {'an encoder' if attack.releases_encoder else 'a classifier'}: "
            f"it does not fit scenario {scenario}"
        )


def take_over_work(n: int) -> Counters:
    """Work of `take_over` with ``n`` images of the user's."""
    return Trainer.head_work(PROBE.steps(n), n)


def take_over(released: Classifier, train: ImageSet, trainer: Trainer) -> Classifier:
    """A copy of a released model under a new head for the trainer's classes, the head trained by `PROBE` on ``train``.

    Args:
        released: the attacker's model; not modified. Its normalisation is kept.
        train: the user's images, on the trainer's device.
        trainer: makes models of the released one's architecture.
    """
    model = trainer.fresh_model("new-head")
    own = {id(tensor) for tensor in Head(model).state_dict(keep_vars=True).values()}
    head = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own}
    model.load_state_dict(
        {name: tensor for name, tensor in released.state_dict().items() if name not in head}, strict=False
    )
    trainer.fit_head(
        model,
        train,
        purpose="probe",
        steps=PROBE.steps(len(train)),
        lr_at=PROBE.lr_at(len(train)),
        batch_size=PROBE.batch_size,
        optimizer=PROBE.updater(),
    )
    return model
