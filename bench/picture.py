"""The picture of a run: for each case a bar a method, its time over the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.ceilings import Ceilings
from bench.palette import COLOURS
from bench.results import Results
from bench.summary import Group, any_row, dtype_names, groups, sections, shape_name

_LINE: Final = "#333333"
_CASES_A_ROW: Final = 8

# Bars beyond are cut, and say so: one method that is far off would flatten all the others.
_HIGHEST: Final = 6.0


def draw_picture(results: Results, path: Path) -> None:
    """Draw a PNG: a column of panels for each phase, a row for every few cases, in the last mode measured.

    Bars are medians, the lines on them reach from quartile to quartile. Where the whole step is there, the
    backward pass alone is left to the tables.

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

    mode = sections(results.rows)[-1][1]
    phases = list(dict.fromkeys(row.phase for row in results.rows))
    if "forward+backward" in phases:
        phases.remove("backward")
    columns = [_rows_of_cases(groups(results.rows, phase, mode)) for phase in phases]
    methods = list(dict.fromkeys(row.method for row in results.rows))
    lines = max(map(len, columns))
    figure = Figure(figsize=(11 * len(phases), 1 + 3 * lines), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, len(phases), squeeze=False)
    for phase, column, axes in zip(phases, columns, panels.T, strict=True):
        axes[0].set_title(phase, fontsize=12)
        for panel in axes[len(column) :]:
            panel.set_visible(False)
        for panel, cases in zip(axes, column, strict=False):
            _draw_bars(panel, cases, methods)
            panel.set_ylabel("time over the floor", fontsize=9)
    shown = [_handle(method) for method in methods]
    figure.legend(handles=shown, loc="outside upper right", ncols=len(shown), frameon=False, fontsize=11)
    figure.suptitle(_title(results, mode), x=0.01, ha="left", fontsize=12)
    figure.savefig(path)


def _title(results: Results, mode: str) -> str:
    commit = (results.environment.commit or "unknown commit")[:10]
    how = "dry run, these times mean nothing" if mode == "dry-run" else mode
    where = f"linear layer on {results.environment.device['name']} ({how}), {commit}"
    return where if results.ceilings is None else f"{where}\nceilings {Ceilings(**results.ceilings)}"


def _rows_of_cases(cases: Sequence[Group]) -> list[Sequence[Group]]:
    return [cases[start : start + _CASES_A_ROW] for start in range(0, len(cases), _CASES_A_ROW)]


def _handle(method: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=COLOURS.get(method), label=method)


def _draw_bars(axes: Any, cases: Sequence[Group], methods: Sequence[str]) -> None:
    """Bars side by side in the middle of each case's place: a method that the case lacks leaves no gap."""
    width = 0.86 / max(1, len(methods))
    highest = 1.0
    for i, group in enumerate(cases):
        drawn = [method for method in methods if method in group]
        for place, method in enumerate(drawn):
            row, left = group[method], i + (place - (len(drawn) - 1) / 2) * width
            height = row.median_us / row.floor_us
            highest = max(highest, height)
            spread = [
                [(row.median_us - row.q25_us) / row.floor_us],
                [(row.q75_us - row.median_us) / row.floor_us],
            ]
            style = {
                "yerr": spread,
                "error_kw": {"elinewidth": 0.7},
                "color": COLOURS.get(method),
                "zorder": 2,
            }
            axes.bar(left, height, width, **style)
            if height > _HIGHEST:
                axes.text(left, _HIGHEST, f"{height:.0f}", ha="center", va="bottom", fontsize=6, rotation=90)
    axes.axhline(1, color=_LINE, linewidth=0.8, zorder=3)
    axes.set_ylim(0, min(1.05 * highest, _HIGHEST))
    axes.set_xticks(range(len(cases)), [_case_name(group) for group in cases], fontsize=7)
    axes.set_xlim(-0.5, _CASES_A_ROW - 0.5)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6, zorder=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _case_name(group: Group) -> str:
    """Over two lines."""
    row = any_row(group)
    shape, _, options = shape_name(row).partition(" ")
    return f"{shape}\n{options} {dtype_names(row)}"
