"""The parts of a model that some defenses work on, and how to refuse a model that lacks one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trainables.models.build import ModelError

# Name -> what it is, to stand behind "needs". `Classifier` says where each of them is found.
PARTS: Mapping[str, str] = {
    "head": "one linear layer that turns a vector of features into the logits",
    "maps": "feature maps at two sizes or more",
    "last_block": "a last block of layers before the head",
    "batch_norm": "batch normalisation with scale, shift and running statistics",
    "convolutions": "convolutions",
    "stages": "stages that follow one another from the image to the head",
    "new_model": "a new model of this architecture with random weights",
}


def refuse_lacking(defense: str, needed: Iterable[str], lacking: Mapping[str, str]) -> None:
    """Refuse a model without a part that a defense needs.

    Args:
        defense: its name.
        needed: names of parts.
        lacking: name of a part -> why the model has none.

    Raises:
        ModelError: one line with the part and the reason.
    """
    for part in sorted(needed):
        if part in lacking:
            raise ModelError(f"defense {defense} needs {PARTS[part]}; {lacking[part]}; use another defense or setting")
