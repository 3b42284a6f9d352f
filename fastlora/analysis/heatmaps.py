"""Draws updates and similarities as heat maps."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastlora.analysis.updates import UpdateReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = (
    ("relative_norm", "‖ΔW‖ / ‖W‖"),
    ("effective_rank", "effective rank"),
    ("amplification", "amplification"),
)

_MOST_NUMBERED = 24


def draw_updates(report: UpdateReport, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw a heat map for each measure: a row for each block of the model, a column for each kind of layer.

    The first number in a layer's name is its block. Layers without one are in the first row.

    Args:
        report: From `update_report`.
        path: The PNG file to write; None writes nothing.

    Returns:
        A figure that pyplot does not know of; a notebook shows it, and `savefig` writes it.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    places = {layer.name: _place(layer.name) for layer in report.layers}
    blocks = sorted({block for block, _ in places.values()})
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    height = 1.7 + 0.32 * max(len(blocks), 2) + 0.07 * max(map(len, kinds))
    figure = _figure(3 * (1.5 + 0.62 * max(len(kinds), 2)), height)
    for axes, (measure, title) in zip(figure.subplots(1, 3), _MEASURES, strict=True):
        cells = [[math.nan] * len(kinds) for _ in blocks]
        for layer in report.layers:
            block, kind = places[layer.name]
            cells[blocks.index(block)][kinds.index(kind)] = getattr(layer, measure)
        _draw(figure, axes, cells, title)
        axes.set_xticks(
            range(len(kinds)), kinds, rotation=90 if len(kinds) > 1 else 0, fontsize=8, parse_math=False
        )
        axes.set_yticks(
            range(len(blocks)), [str(block) if block >= 0 else "" for block in blocks], fontsize=8
        )
    figure.suptitle(f"Updates of adapter “{report.adapter}”", fontsize=11, parse_math=False)
    return _written(figure, path)


def draw_similarity(similarity: Mapping[str, Tensor], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw a heat map of φ(i, j) for each layer, all on a scale from 0 to 1.

    Args:
        similarity: From `adapter_similarity`, or {title: [r1, r2]}; at most 36, or they would be too small.
        path: The PNG file to write; None writes nothing.

    Returns:
        A figure, as by `draw_updates`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are none, or more than 36.
        OSError: If the file cannot be written.
    """
    if not 1 <= len(similarity) <= 36:
        raise ValueError(f"similarity must hold 1 to 36 layers to be drawn; got {len(similarity)}")
    columns = min(len(similarity), math.ceil(math.sqrt(len(similarity))))
    rows = math.ceil(len(similarity) / columns)
    figure = _figure(2.9 * columns + 0.8, 2.75 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(similarity) :]:
        axes.remove()
    for axes, (name, values) in zip(grid.flat, similarity.items(), strict=False):
        r1, r2 = values.shape
        image = axes.imshow(
            values.tolist(),
            cmap="viridis",
            vmin=0,
            vmax=1,
            extent=(0.5, r2 + 0.5, r1 + 0.5, 0.5),
            aspect="auto",
        )
        axes.set_title(name or "the model", fontsize=9, parse_math=False)
        axes.set_xlabel("j", fontsize=8)
        axes.set_ylabel("i", fontsize=8)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_whole_numbers())
        axes.tick_params(labelsize=7)
    figure.colorbar(image, ax=list(grid.flat[: len(similarity)]), label="φ(i, j)", shrink=0.8)
    return _written(figure, path)


def _place(name: str) -> tuple[int, str]:
    """(block, kind): (3, "layers.*.attn.q_proj") for layers.3.attn.q_proj; block -1 if there is no number."""
    number = re.search(r"(?<![^.])\d+(?![^.])", name)
    if number is None:
        return -1, name or "the model"
    return int(number.group()), f"{name[: number.start()]}*{name[number.end() :]}"


def _draw(figure: Any, axes: Any, cells: list[list[float]], title: str) -> None:
    shown = [[cell if math.isfinite(cell) else math.nan for cell in row] for row in cells]
    highest = max((cell for row in shown for cell in row if not math.isnan(cell)), default=0.0)
    # The scale begins at 0, so that only values that differ much have very different colours.
    image = axes.imshow(shown, cmap="viridis", aspect="auto", vmin=0, vmax=highest or 1.0)
    figure.colorbar(image, ax=axes, shrink=0.9).ax.tick_params(labelsize=7)
    axes.set_title(title, fontsize=10)
    axes.set_facecolor("#EEEEEE")
    if len(cells) > _MOST_NUMBERED:
        return
    for row, values in enumerate(shown):
        for column, value in enumerate(values):
            if not math.isnan(value):
                dark = value <= 0.6 * highest
                axes.text(
                    column, row, f"{value:.2g}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True, min_n_ticks=1)


def _written(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        drawn = BytesIO()
        figure.savefig(drawn, format="png")
        # Written only now, so that a drawing that fails leaves an older picture as it was.
        Path(path).write_bytes(drawn.getvalue())
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib: pip install "fastlora-triton[demo]"', name=error.name
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
