"""The range of lengths that spaces share, in optimiser steps."""

from __future__ import annotations

from optuna.distributions import IntDistribution

# Super-FT's two triangles at their longest: a search that could not go so far would be beaten by its range.
LONGEST_TRIANGLE = 4000
LONGEST = 2 * LONGEST_TRIANGLE


def steps(shortest: int = 20) -> IntDistribution:
    """From ``shortest`` to the longest of super-FT's space, on a logarithmic scale."""
    return IntDistribution(shortest, LONGEST, log=True)
