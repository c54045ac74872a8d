"""Damaged copies of a file's bytes, the same in every run, for readers of strangers' files."""

from __future__ import annotations

import random
from collections.abc import Iterator

MUTANTS = 200
FAR = 4000  # bytes from the places where the structure is told


def mutants(whole: bytes, *, start: int = 0, seed: int = 0) -> Iterator[bytes]:
    """200 copies of ``whole``: a quarter cut off, the others with one to three other bytes.

    Args:
        start: where the file tells its structure, beside its end: most of the bytes are changed there.
    """
    dice = random.Random(seed)
    for number in range(MUTANTS):
        content = bytearray(whole)
        if number % 4 == 0:
            content = content[: dice.randrange(len(content))]
        else:
            reach = min(FAR, len(content) - start - 1)
            for _ in range(dice.randrange(1, 4)):
                place = start + dice.randrange(reach) if number % 4 < 3 else -dice.randrange(1, reach)
                content[place] = dice.randrange(256)
        yield bytes(content)
