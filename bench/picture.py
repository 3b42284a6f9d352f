"""The picture of a run: for each case a bar a method, its time over the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from bench.ceilings import Ceilings
from bench.results import Results
from bench.summary import Group, any_row, groups, sections, shape_name

# Okabe and Ito's palette: distinct to colour-blind eyes.
_COLOURS: Final = {
    "frozen": "#999999",
    "full": "#D55E00",
    "unfused": "#56B4E9",
    "addmm": "#009E73",
    "fastlora": "#0072B2",
}
_LINE: Final = "#333333"


def draw_picture(results: Results, path: Path) -> None:
    """Draw a PNG: a panel for each phase and adapter dtype, in the last mode measured.

    Bars are medians, the lines on them reach from quartile to quartile.

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
    dtypes = list(dict.fromkeys(row.adapter_dtype for row in results.rows))
    figure = Figure(figsize=(9.5 * len(dtypes), 4.4 * len(phases)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(phases), len(dtypes), squeeze=False, sharey="row")
    for phase, line in zip(phases, panels, strict=True):
        for dtype, axes in zip(dtypes, line, strict=True):
            cases = groups(results.rows, phase, mode)
            _draw_bars(axes, [group for group in cases if any_row(group).adapter_dtype == dtype])
            axes.set_title(f"{phase}, adapters {dtype}", fontsize=11)
        line[0].set_ylabel("time over the floor")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(_title(results, mode), x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _title(results: Results, mode: str) -> str:
    commit = (results.environment.commit or "unknown commit")[:10]
    how = "dry run, these times mean nothing" if mode == "dry-run" else mode
    where = f"{results.rows[0].dtype} linear layer on {results.environment.device['name']} ({how}), {commit}"
    return where if results.ceilings is None else f"{where}\nceilings {Ceilings(**results.ceilings)}"


def _draw_bars(axes: Any, cases: list[Group]) -> None:
    methods = list(dict.fromkeys(method for group in cases for method in group))
    width = 0.84 / max(1, len(methods))
    for place, method in enumerate(methods):
        shift = (place - (len(methods) - 1) / 2) * width
        drawn = [(i + shift, group[method]) for i, group in enumerate(cases) if method in group]
        axes.bar(
            [left for left, _ in drawn],
            [row.median_us / row.floor_us for _, row in drawn],
            width,
            yerr=[
                [(row.median_us - row.q25_us) / row.floor_us for _, row in drawn],
                [(row.q75_us - row.median_us) / row.floor_us for _, row in drawn],
            ],
            error_kw={"elinewidth": 0.7},
            label=method,
            color=_COLOURS.get(method),
            zorder=2,
        )
    axes.axhline(1, color=_LINE, linewidth=0.8, zorder=3)
    names = [
        shape_name(any_row(group)).replace("x", "\n").replace("->", "\n->").replace(" ", "\n")
        for group in cases
    ]
    axes.set_xticks(range(len(cases)), names, fontsize=8)
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.set_xlabel("M, K->N, rank", fontsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6, zorder=1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
