"""Writes docs/front_explained.png: the quickstart's front of BadNets, as in its report, with words and arrows on it.

`python docs/explain_front.py`. The picture below is the committed docs/front_badnets.png; places are given in percent
(clean accuracy, ASR), and two ticks of each axis tell where those lie in it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
# Pixels of the left picture of front_badnets.png, and of two ticks on each of its axes.
LEFT, RIGHT, TOP, BOTTOM = 0, 778, 30, 752
ACCURACY_TICKS = ((86.0, 126.0), (98.0, 733.5))
ASR_TICKS = ((0.0, 679.0), (100.0, 79.0))
# Words, where they stand, what they point at.
NOTES = (
    ("no repair:\nthe backdoor works", (91.2, 93), (97.9, 100)),
    ("fine-tuning at the\nvictims' own rate", (91.2, 79), (97.5, 98.8)),
    ("front of the search, as read\non the report half", (90.2, 61), (96.35, 55)),
    ("the same front, as the\nsearch saw it on its half", (90.2, 45), (97.55, 35)),
    ("least ASR at 2 points lost\nat most (search half)", (90.2, 30), (96.3, 15.5)),
    ("training\nfrom scratch", (89.0, 13), (93.9, 1.5)),
    ("published\nschedule", (92.5, 18), (94.4, 2.5)),
    ("largest DER", (95.2, 22), (96.0, 1.5)),
)


def place(accuracy: float, asr: float) -> tuple[float, float]:
    """Pixel of a point given in percent."""
    (a0, x0), (a1, x1) = ACCURACY_TICKS
    (r0, y0), (r1, y1) = ASR_TICKS
    return x0 + (accuracy - a0) * (x1 - x0) / (a1 - a0), y0 + (asr - r0) * (y1 - y0) / (r1 - r0)


def explained() -> Figure:
    """The left picture with its notes."""
    picture = matplotlib.image.imread(HERE / "front_badnets.png")
    figure = Figure(figsize=(7.78, 7.22), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, interpolation="antialiased")
    axes.set(xlim=(LEFT, RIGHT), ylim=(BOTTOM, TOP))
    axes.axis("off")
    look = {"arrowstyle": "-|>", "color": "#B03A00", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 3}
    box = {"boxstyle": "round,pad=0.25", "facecolor": "#FFF6E5", "edgecolor": "#B03A00", "linewidth": 0.8}
    for words, stands, points_at in NOTES:
        axes.annotate(
            words,
            xy=place(*points_at),
            xytext=place(*stands),
            ha="center",
            va="center",
            fontsize=10,
            arrowprops=look,
            bbox=box,
        )
    return figure


if __name__ == "__main__":
    explained().savefig(HERE / "front_explained.png")
    print(f"picture: {HERE / 'front_explained.png'}")
