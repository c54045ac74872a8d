"""What a method trains with: device, random streams, augmentation, counters, fresh models. Never any test data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainables.data.images import FeatureSet, ImageSet, in_parts, to_float
from trainables.models.classifier import Classifier, Head
from trainables.models.encoder import seed_dropout
from trainables.seeding import generator_for
from trainables.storage.memo import Memo
from trainables.storage.store import Artifact, content_key
from trainables.training import loop
from trainables.training.loop import Augmentation, Counters, History
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.watch import watched, watching

# Part of every key of the memo: raise it when a change makes what is kept wrong.
MEMO_SCHEMA = 1


def memo_name(what: str, identity: Mapping[str, Any], task: str = "") -> str:
    """Under which `Trainer.remember` keeps something; arguments as there, ``task`` as of the bench."""
    return f"{what}-{content_key({'schema': MEMO_SCHEMA, 'task': task, 'identity': dict(identity)})}"


@dataclass
class Trainer:
    """The bench that attacks and defenses work at.

    Args:
        device: where models and data are.
        seed: of this run; all randomness of a method comes from `generator`.
        num_classes: K.
        flip: whether a horizontal flip keeps the labels of this data set.
        padding: pixels of the random crop.
        new_model: a freshly initialised model (on the CPU) from a generator.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        counters: exact work done so far, by this run; what it found ready made is not in it.
        memo: keeps what `remember` was told to remember; by default nothing outlives this bench.
        upstream: unlabelled images, uint8 (N, 3, H, W), that an encoder is trained on before the task's own images;
            None: the task's own are all there is.
        task: key of everything a run is given but its settings (victim, data, seed); part of every key of the memo.
        batch: images per optimiser step so far, the largest where stages differ; None before anything was trained.
        made: names in the memo of what `remember` had to make.
        reused: what `remember` found ready made, by its name in the memo, with the work that making it had cost.
    """

    device: torch.device
    seed: int
    num_classes: int
    flip: bool
    padding: int
    new_model: Callable[[torch.Generator], Classifier]
    precision: str = "auto"
    counters: Counters = field(default_factory=Counters)
    memo: Memo = field(default_factory=Memo)
    upstream: Tensor | None = None
    task: str = ""
    batch: int | None = None
    made: list[str] = field(default_factory=list)
    reused: dict[str, Counters] = field(default_factory=dict)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A private random stream (CPU); the same seed and purpose give the same one."""
        return generator_for(self.seed, *purpose)

    def fresh_model(self, *purpose: str | int) -> Classifier:
        """A newly initialised model on the device."""
        model = self.new_model(self.generator("weights", *purpose)).to(self.device)
        seed_dropout(model, self.generator("dropout", *purpose))
        return model

    def augmentation(self) -> Augmentation:
        """The task's random crop, and a flip where the data set allows it; attacker and defender use the same."""
        return Augmentation(self.padding, self.flip)

    def fit(self, model: nn.Module, data: ImageSet, *, purpose: str = "fit", **settings: Any) -> History:
        """`loop.fit` with this bench's random stream, precision and counters."""
        settings.setdefault("counters", self.counters)
        self._note_batch(data, settings)
        self._let_watch(model, data, purpose, settings)
        return loop.fit(model, data, generator=self.generator("batches", purpose), precision=self.precision, **settings)

    def _note_batch(self, data: ImageSet, settings: Mapping[str, Any]) -> None:
        if settings["steps"]:
            self._had_batch(min(settings.get("batch_size", loop.BATCH_SIZE), len(data)))

    def _let_watch(self, model: nn.Module, data: ImageSet, purpose: str, settings: dict[str, Any]) -> None:
        """After each step, whoever watches looks at the model (a part of one is none)."""
        if isinstance(model, Classifier):
            batch, after_step = settings.get("batch_size", loop.BATCH_SIZE), settings.get("after_step")
            settings["after_step"] = watched(model, purpose, self.counters.steps, batch, len(data), after_step)

    def _had_batch(self, images: int) -> None:
        self.batch = max(images, self.batch or 0)

    def by_recipe(self, recipe: TrainingRecipe, n: int) -> dict[str, Any]:
        """Settings of `fit` of a whole training by ``recipe`` on ``n`` images, with the task's augmentation."""
        return {
            "steps": recipe.steps(n),
            "lr_at": recipe.lr_at(n),
            "batch_size": recipe.batch_size,
            "optimizer": recipe.updater(),
            "augmentation": self.augmentation(),
        }

    def train_from_scratch(
        self, train: ImageSet, recipe: TrainingRecipe, *, purpose: str | None = None, **changes: Any
    ) -> Classifier:
        """A new model trained by ``recipe``.

        Args:
            purpose: of a second model beside the run's own (a surrogate): other initial weights, other batches.
            changes: settings of `loop.fit` that replace the recipe's or the task's.
        """
        model = self.fresh_model() if purpose is None else self.fresh_model(purpose)
        self.fit(model, train, purpose=purpose or "fit", **(self.by_recipe(recipe, len(train)) | changes))
        return model

    def accuracy(self, model: Classifier, data: ImageSet) -> float:
        """Share of ``data`` that the model classifies as labelled, in eval mode, counted."""
        predictions = predict(model, data.images, precision=self.precision, counters=self.counters)
        return float((predictions == data.labels).double().mean())

    def features(self, model: Classifier, images: Tensor, batch_size: int = 1024) -> Tensor:
        """Penultimate features, float32 (N, D), of uint8 images; eval mode, no augmentation, counted."""
        return self._vectors(model, model.features, images, batch_size)

    def embeddings(self, model: Classifier, images: Tensor, batch_size: int = 1024) -> Tensor:
        """Like `features`, but what the encoder gives to the head."""
        return self._vectors(model, model.embed, images, batch_size)

    @torch.no_grad()
    def _vectors(
        self, model: Classifier, function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int
    ) -> Tensor:
        model.eval()
        parts = []
        with loop.autocast(images.device, self.precision):
            for batch in in_parts(images, batch_size):
                parts.append(function(to_float(batch)).float())
                self.counters.forward_samples += len(batch)
        return torch.cat(parts)

    def fit_head(self, model: Classifier, data: ImageSet, *, purpose: str = "fit", **settings: Any) -> History:
        """Train the head alone, on vectors that are computed once, without augmentation; the encoder stays as it is.

        The head's own steps cost next to nothing: only the encoder's forward pass is counted.
        """
        self._note_batch(data, settings)
        vectors, head_only = FeatureSet(self.embeddings(model, data.images), data.labels), Counters()
        self._let_watch(model, data, purpose, settings)
        history = loop.fit(
            Head(model),
            vectors,
            generator=self.generator("batches", purpose),
            precision="float32",
            counters=head_only,
            **settings,
        )
        self.counters.steps += head_only.steps
        model.eval()
        return history

    @staticmethod
    def head_work(steps: int, n: int) -> Counters:
        """Work of `fit_head` on ``n`` images, as it counts it."""
        return Counters(steps=steps, forward_samples=n)

    def remember(
        self, what: str, identity: Mapping[str, Any], build: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """``build()``, or the same tensors from an earlier trial of this task; on the device, not to be modified.

        Its random numbers must come from `generator` with purposes of its own, so that it does not matter who builds.

        Args:
            what: kind of result, a word for file names and for the flag ``WHAT_reused`` of the trial's row.
            identity: JSON-able, all that decides the result apart from the task: settings, chosen samples.
        """

        def make() -> Artifact:
            before, batch, self.batch = dataclasses.replace(self.counters), self.batch, None
            with watching(None):  # the next trial finds it ready made, with nothing to look at
                tensors = {name: tensor.detach().cpu() for name, tensor in build().items()}
            work = dataclasses.asdict(self.counters - before)
            facts = {"what": what, "identity": dict(identity), "work": work, "batch": self.batch}
            if batch is not None:
                self._had_batch(batch)
            return Artifact({"tensors": tensors}, facts)

        name = memo_name(what, identity, self.task)
        artifact, built = self.memo.obtain(name, make)
        if built:
            self.made.append(name)
        elif name not in self.made:
            self.reused[name] = Counters(**artifact.facts["work"])
            if (batch := artifact.facts.get("batch")) is not None:
                self._had_batch(batch)
        return {name: tensor.to(self.device) for name, tensor in artifact.tensors["tensors"].items()}

    def remember_model(self, what: str, identity: Mapping[str, Any], build: Callable[[], Classifier]) -> Classifier:
        """Like `remember`, for a model: a copy of its own, in eval mode."""
        state = self.remember(what, identity, lambda: dict(build().state_dict()))
        model = self.fresh_model("remembered")
        model.load_state_dict(state)
        return model.to(memory_format=torch.channels_last).eval()
