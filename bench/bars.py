"""The picture of a level: a panel for each net or layer, a bar for each method, its parts end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from bench.groups import OURS, Group, comparable
from bench.results import Results, Row
from bench.table import scale

# Okabe and Ito's palette: distinct to colour-blind eyes.
_PARTS: Final = {"forward": "#56B4E9", "backward": "#0072B2", "optimizer": "#E69F00"}
_WHOLE: Final = "#0072B2"
_FLOOR: Final = "#D55E00"

_BAR_INCHES: Final = 0.3
_PANEL_INCHES: Final = 1.1
_COLUMNS: Final = 3


def draw_bars(results: Results, path: Path) -> None:
    """Draw a PNG: bars are medians, the line on each reaches from quartile to quartile of the whole.

    Args:
        results: With at least one row.
        path: Where to write it.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "fastlora-triton[bench]"') from error

    groups = comparable(results.rows)
    columns = min(_COLUMNS, math.ceil(math.sqrt(len(groups))))
    lines = -(-len(groups) // columns)
    most = max(len(group.rows) for group in groups)
    figure = Figure(
        figsize=(5.6 * columns + 1, lines * (_BAR_INCHES * most + _PANEL_INCHES) + 1),
        dpi=110,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    labels: dict[str, Any] = {}
    for axes, group in zip(panels, groups, strict=False):
        _draw(axes, group)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if labels:
        handles, names = list(labels.values()), list(labels)
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    here = results.environment
    commit = (here.commit or "unknown commit")[:10]
    figure.suptitle(
        f"{here.device['name']}, torch {here.versions['torch']}, {commit}", x=0.01, ha="left", fontsize=10
    )
    figure.savefig(path)


def _draw(axes: Any, group: Group) -> None:
    unit, name = scale(group)
    methods = [method for method, rows in group.rows.items() if group.whole in rows]
    wholes = [group.rows[method][group.whole] for method in methods]
    parts = [phase for phase in _PARTS if phase in group.phases and group.whole == "step"]
    places = range(len(methods))
    if parts:
        starts = [0.0] * len(methods)
        for part in parts:
            widths = [group.rows[method][part].median_us / unit for method in methods]
            axes.barh(places, widths, left=starts, color=_PARTS[part], label=part, zorder=2)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    else:
        axes.barh(places, [row.median_us / unit for row in wholes], color=_WHOLE, zorder=2)
    axes.errorbar(
        [row.median_us / unit for row in wholes],
        places,
        xerr=[
            [(row.median_us - row.q25_us) / unit for row in wholes],
            [(row.q75_us - row.median_us) / unit for row in wholes],
        ],
        fmt="none",
        ecolor="#333333",
        elinewidth=0.9,
        zorder=3,
    )
    _write_ratios(axes, group, methods, wholes, unit)
    if wholes[0].floor_us:
        axes.axvline(wholes[0].floor_us / unit, color=_FLOOR, linewidth=1, linestyle=":", label="floor")
    axes.set_yticks(places, methods)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    axes.invert_yaxis()
    axes.set_title(group.title, fontsize=9, loc="left")
    axes.set_xlabel(f"{group.whole}, {name}", fontsize=8)
    axes.set_xlim(0, 1.18 * max(row.q75_us for row in wholes) / unit)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, zorder=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _write_ratios(axes: Any, group: Group, methods: list[str], wholes: list[Row], unit: float) -> None:
    """Behind each bar how often ours fits into it."""
    for place, (method, row) in enumerate(zip(methods, wholes, strict=True)):
        over = group.over(method)
        if over is not None and method != OURS:
            axes.annotate(
                f"{over.median:.2f}x",
                (row.q75_us / unit, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
