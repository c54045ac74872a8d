"""How training steps are made: operation by operation, captured as a CUDA graph, or compiled."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

VARIABLE = "SUPERFT_STEP"

# auto: captured on a card, where that is possible (`captured_step`), eager elsewhere; eager: operation by operation
# everywhere, the reference; compiled: the loss by torch.compile, rounded otherwise than eager.
Execution = Literal["auto", "eager", "compiled"]


def chosen_execution() -> Execution:
    """What the environment variable ``SUPERFT_STEP`` says; ``auto`` where it says nothing.

    Raises:
        ValueError: it says something else.
    """
    chosen = os.environ.get(VARIABLE) or "auto"
    if chosen not in get_args(Execution):
        raise ValueError(f"{VARIABLE} must be {', '.join(get_args(Execution)[:-1])} or compiled, got {chosen!r}")
    return cast(Execution, chosen)
