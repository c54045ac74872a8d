"""A study of nothing but searches, for benchmarks of what runs them."""

from __future__ import annotations

from collections.abc import Sequence

from study.spec.load import load_spec
from study.spec.schema import StudySpec


def searches_alone(attacks: Sequence[str], trials: int, *more: str) -> StudySpec:
    """The quickstart with a search of ``trials`` trials for each attack, each of them one row: one seed, no baselines.

    Args:
        more: further ``KEY=VALUE``.
    """
    cells = [f"attacks=[{', '.join(attacks)}]", "seeds=[0]", "defense_seeds=[0]"]
    return load_spec("quickstart", [*cells, "baselines=[]", f"search.trials={trials}", *more])
