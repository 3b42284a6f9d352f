"""The picture of the walk-through: the losses of all phases, and how far each tensor moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastlora.recipes.picture import tidy
from fastlora.recipes.walkthrough.results import Walk, WalkResult

# Okabe and Ito's palette: distinct to colour-blind eyes; markers tell the curves apart in grey.
_BASE: Final = "#777777"
_OURS: Final = "#0072B2"
_PEER: Final = "#E69F00"
_LINE: Final = "#333333"

_PHASES: Final = {
    "pretrain": "pretraining:\nsin(sum) > 0",
    "same_data": "same\ndata",
    "downstream": "sum > 10",
}


def draw_picture(path: Path, result: WalkResult) -> None:
    """Draw a PNG of 1,800 x 720 pixels.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    curve, bars = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_losses(curve, result.pretrain, result.walks)
    _draw_changes(bars, result.ours)
    figure.savefig(path)


def _draw_losses(axes: Any, pretrain: Sequence[float], walks: Mapping[str, Walk]) -> None:
    starts, count = {}, 0
    lengths = {"pretrain": len(pretrain), **{k: len(v) for k, v in walks["fastlora"].losses.items()}}
    for phase, length in lengths.items():
        starts[phase] = count + 1
        count += length
    axes.plot(range(1, len(pretrain) + 1), pretrain, color=_BASE, linewidth=1.6, label="all weights")
    axes.hlines(pretrain[-1], len(pretrain), starts["downstream"] - 0.5, color=_BASE, linestyle=":")
    styles = {"fastlora": (_OURS, "-", "o", 4.5), "peft": (_PEER, "--", "x", 7)}
    for name, walk in walks.items():
        colour, line, marker, size = styles[name]
        for phase, losses in walk.losses.items():
            epochs = range(starts[phase], starts[phase] + len(losses))
            label = f"LoRA, {name}" if phase == "downstream" else None
            axes.plot(
                epochs, losses, color=colour, linestyle=line, marker=marker, markersize=size, label=label
            )
    curves = [pretrain, *(losses for walk in walks.values() for losses in walk.losses.values())]
    highest = max(map(max, curves))
    axes.set_ylim(0, highest * 1.35)
    for phase, start in starts.items():
        if phase != "pretrain":
            axes.axvline(start - 0.5, color="#BBBBBB", linewidth=0.8)
        middle = start + (lengths[phase] - 1) / 2
        axes.text(middle, highest * 1.32, _PHASES[phase], ha="center", va="top", fontsize=9, color=_LINE)
    axes.set_xlim(0.5, count + 0.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss of the epoch's batches")
    axes.set_title("Loss", fontsize=11)
    axes.legend(loc="center left", fontsize=9, framealpha=1, edgecolor="none")
    tidy(axes)


def _draw_changes(axes: Any, walk: Walk) -> None:
    names = list(walk.change)
    # B begins at 0, so there is no ratio to draw.
    sizes = [walk.change[name] or 0.0 for name in names]
    axes.barh(range(len(names)), sizes, color=_OURS, zorder=2)
    for place, name in enumerate(names):
        what = "bit for bit the same"
        if walk.moved[name]:
            what = "moved away from 0" if walk.change[name] is None else f"{walk.change[name]:.2g}"
        axes.text(sizes[place], place, f" {what}", va="center", fontsize=9, color=_LINE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(*sizes, 1e-9) * 1.6)
    axes.set_xlabel("‖change‖ / ‖tensor before‖")
    axes.set_title("What fine-tuning moved (fastlora)", fontsize=11)
    tidy(axes)
    axes.grid(visible=False, axis="y")
