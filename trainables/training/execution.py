"""How training steps are made: operation by operation, captured as a CUDA graph, or compiled."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

from trainables.registry import SettingError

VARIABLE = "SUPERFT_STEP"

# auto: captured on a card, where that is possible (`captured_step`), eager elsewhere; eager: operation by operation
# everywhere, the reference; compiled: a loss that is pure (`captured_step.is_pure`) by torch.compile, any other eager.
Execution = Literal["auto", "eager", "compiled"]


def chosen_execution() -> Execution:
    """What the environment variable ``SUPERFT_STEP`` says; ``auto`` where it says nothing.

    Raises:
        SettingError: it says something else.
    """
    chosen = os.environ.get(VARIABLE) or "auto"
    if chosen not in get_args(Execution):
        raise SettingError(f"{VARIABLE} must be auto, eager or compiled, got {chosen!r}")
    return cast(Execution, chosen)
