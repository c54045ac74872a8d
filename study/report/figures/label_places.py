"""Where names stand beside their points, so that a picture can be read without its legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Sides of a point, the best first, by Plotly's names; each with the direction in which the text lies.
SIDES = {
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "top right": (1, 1),
    "bottom right": (1, -1),
    "top left": (-1, 1),
    "bottom left": (-1, -1),
}
# Of text and marks, in units of the panel's sides (which are 1 by 1).
CHARACTER, LINE, MARK = 0.0125, 0.03, 0.022


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    @property
    def outside(self) -> float:
        """The area that lies outside of the panel."""
        panel = _Box(0.0, 0.0, 1.0, 1.0)
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(panel)


def sides(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    marks: Sequence[tuple[float, float]],
    character: float = CHARACTER,
) -> list[str]:
    """The side of each point on which its name covers least of marks, of names before it, and of the panel's edge.

    Greedy, not optimal: where points lie in a heap, names still overlap.

    Args:
        points: of each name; the panel is the unit square.
        marks: everything that is drawn, those points included.
        character: width of a letter; more in a small panel.
    """
    half = MARK / 2
    taken = [_Box(x - half, y - half, x + half, y + half) for x, y in marks if 0 <= x <= 1 and 0 <= y <= 1]
    chosen: list[str] = []
    for (x, y), name in zip(points, names, strict=True):
        boxes = {side: _text_box(x, y, character * len(name), direction) for side, direction in SIDES.items()}

        def cost(side: str, boxes: dict[str, _Box] = boxes) -> float:
            return 3 * boxes[side].outside + sum(boxes[side].overlap(box) for box in taken)

        chosen.append(min(SIDES, key=cost))  # the first of equals
        taken.append(boxes[chosen[-1]])
    return chosen


def _text_box(x: float, y: float, width: float, direction: tuple[int, int]) -> _Box:
    height = LINE
    across, up = direction
    reach = MARK / 2 * (0.7 if across and up else 1.0)
    left = x + across * reach - width * (1 - across) / 2
    bottom = y + up * reach - height * (1 - up) / 2
    return _Box(left, bottom, left + width, bottom + height)
