"""Pictures: a panel for each thing that all methods do, a bar for each method, its value on the bar.

One question a picture; ours is blue, all others grey, so that no legend is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.groups import OURS, Group, comparable, in_unit
from bench.results import Results

_OURS: Final = "#0072B2"
_OTHERS: Final = "#BBBBBB"
_INK: Final = "#333333"

_WIDTH: Final = 5.2
_BAR_HEIGHT: Final = 0.27
_TITLE_WIDTH: Final = 58


class Bar(NamedTuple):
    """A method's value, the range that its line spans, and what is written behind it."""

    method: str
    value: float
    low: float
    high: float
    text: str


class Panel(NamedTuple):
    """One thing that all methods do; `mark` is where a line crosses the bars."""

    title: str
    bars: Sequence[Bar]
    mark: float | None = None


def draw(question: str, axis: str, panels: Sequence[Panel], path: Path, columns: int = 2) -> None:
    """Draw a PNG.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "fastlora-triton[bench]"') from error

    columns = min(columns, len(panels))
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [1.0 + _BAR_HEIGHT * max(len(panel.bars) for panel in line) for line in lines]
    size = (_WIDTH * columns, sum(heights) + 0.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
    for axes, line in zip(grid, lines, strict=True):
        for place, panel in zip(axes, line, strict=False):
            _draw_panel(place, panel, axis)
        for place in axes[len(line) :]:
            place.set_axis_off()
    figure.suptitle(question, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    figure.savefig(path)


def _draw_panel(axes: Any, panel: Panel, axis: str) -> None:
    bars, places = panel.bars, range(len(panel.bars))
    spread = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
    colours = [_OURS if bar.method == OURS else _OTHERS for bar in bars]
    axes.barh(places, [bar.value for bar in bars], 0.72, color=colours, zorder=2)
    axes.errorbar(
        [bar.value for bar in bars], places, xerr=spread, fmt="none", ecolor=_INK, elinewidth=0.8, zorder=3
    )
    for place, bar in zip(places, bars, strict=True):
        bold = "bold" if bar.method == OURS else "normal"
        where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        where["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.annotate(bar.text, (max(bar.value, bar.high), place), fontsize=8, fontweight=bold, **where)
    if panel.mark is not None:
        axes.axvline(panel.mark, color=_INK, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_yticks(places, [bar.method for bar in bars], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max((bar.high for bar in bars), default=1.0))
    axes.set_xlabel(axis, fontsize=7)
    axes.set_title(textwrap.fill(panel.title, _TITLE_WIDTH), fontsize=9, loc="left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_groups(results: Results, path: Path) -> None:
    """How long does each method take? In the last mode of a layer's, by CUDA graphs where there are any."""
    modes = [row.mode for row in results.rows]
    rows = [row for row in results.rows if row.mode == "graph"] if "graph" in modes else results.rows
    here = results.environment
    dry = ", a dry run: these times mean nothing" if "dry-run" in modes else ""
    where = f"{here.device['name']}, torch {here.versions['torch']}, {(here.commit or 'unknown')[:10]}{dry}"
    question = f"How long does a step take, and how many times fastlora's time is that?\n{where}"
    draw(
        question, "time; the dotted line is the floor", list(_group_panels(comparable(rows))), path, columns=3
    )


def _group_panels(groups: Iterable[Group]) -> Iterable[Panel]:
    for group in groups:
        us, unit = in_unit(group)
        bars = []
        for method, phases in group.rows.items():
            if row := phases.get(group.whole):
                over = group.over(method)
                text = f"{row.median_us / us:.3g} {unit}" + (f", {over.median:.2f}x" if over else "")
                bars.append(Bar(method, row.median_us / us, row.q25_us / us, row.q75_us / us, text))
        floor = _floor(group)
        yield Panel(f"{group.whole}: {group.title}", bars, floor / us if floor else None)


def _floor(group: Group) -> float | None:
    return next((p[group.whole].floor_us for p in group.rows.values() if group.whole in p), None)
