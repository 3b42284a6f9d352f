"""The README's picture: for each thing measured a bar a method, as multiples of ours on a log axis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.columns import Run, columns
from bench.groups import OURS
from bench.palette import COLOURS

_HEAD_WIDTH: Final = 34


def draw_overview(runs: Mapping[str, Run], path: Path) -> None:
    """Draw a PNG of `columns`, all but ours, which is the line at 1.

    Args:
        runs: By level; not empty.
        path: Where to write it.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import StrMethodFormatter
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "fastlora-triton[bench]"') from error

    shown = list(columns(runs))
    methods = list(dict.fromkeys(name for column in shown for name in column.cells if name != OURS))
    figure = Figure(figsize=(9, 1.2 + 0.16 * len(methods) * len(shown)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.82 / max(1, len(methods))
    for place, method in enumerate(methods):
        shift = (place - (len(methods) - 1) / 2) * height
        drawn = [
            (i + shift, column.cells[method]) for i, column in enumerate(shown) if method in column.cells
        ]
        axes.barh(
            [where for where, _ in drawn],
            [cell.middle - 1 for _, cell in drawn],
            height,
            left=1,
            xerr=[
                [cell.middle - cell.low for _, cell in drawn],
                [cell.high - cell.middle for _, cell in drawn],
            ],
            error_kw={"elinewidth": 0.8},
            color=COLOURS.get(method),
            label=method,
            zorder=2,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.axvline(1, color="#333333", linewidth=1, zorder=3)
    axes.set_yticks(
        range(len(shown)), [textwrap.fill(column.head, _HEAD_WIDTH) for column in shown], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlabel("multiples of fastlora's; to the right of the line fastlora takes less", fontsize=9)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, zorder=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(5, len(methods)), frameon=False, fontsize=8)
    figure.savefig(path)
