"""The picture: how long does each method take, in multiples of fastlora's time?

A panel for each thing that all methods do, a bar for each method, its value on the bar. Ours is blue, all
others grey, so that no legend is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bench.groups import OURS, Column
from fastlora.recipes.picture import BLUE, GREY, INK

_WIDTH: Final = 5.2
_BAR_HEIGHT: Final = 0.27
# Characters of a panel's title, and of the question above it.
_TITLE_WIDTH: Final = 58
_QUESTION_WIDTH: Final = 48


def draw(columns: Iterable[Column], path: Path, where: str = "") -> None:
    """Draw a PNG of the columns that are times; of none no picture.

    Args:
        columns: What there is to compare.
        path: Of the PNG.
        where: A line below the question.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    panels = [column for column in columns if column.is_time]
    if not panels:
        return
    from matplotlib.figure import Figure

    across = min(2, len(panels))
    grouped = [panels[start : start + across] for start in range(0, len(panels), across)]
    heights = [1.0 + _BAR_HEIGHT * max(len(panel.cells) for panel in line) for line in grouped]
    figure = Figure(figsize=(_WIDTH * across, sum(heights) + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(len(grouped), across, squeeze=False, height_ratios=heights)
    for axes, line in zip(grid, grouped, strict=True):
        for place, panel in zip(axes, line, strict=False):
            _draw_panel(place, panel)
        for place in axes[len(line) :]:
            place.set_axis_off()
    question = "How long does each method take, in multiples of fastlora's time?"
    lines = [textwrap.fill(line, _QUESTION_WIDTH * across) for line in (question, where) if line]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path)


def _draw_panel(axes: Any, panel: Column) -> None:
    bars, places = list(panel.cells.values()), range(len(panel.cells))
    values, highest = [bar.median for bar in bars], max(bar.q75 for bar in bars)
    spread = [[bar.median - bar.q25 for bar in bars], [bar.q75 - bar.median for bar in bars]]
    axes.barh(places, values, 0.72, color=[BLUE if name == OURS else GREY for name in panel.cells], zorder=2)
    axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, zorder=3)
    for place, (method, bar) in enumerate(panel.cells.items()):
        axes.annotate(
            f"{bar.median:.2f}x",
            (bar.q75, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if method == OURS else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_yticks(places, list(panel.cells), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * highest)
    axes.set_xlabel("times fastlora's; beyond 1 (dotted) fastlora takes less", fontsize=7)
    axes.set_title(textwrap.fill(panel.head, _TITLE_WIDTH), fontsize=9, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
