"""The picture of the walk-through: the losses of all phases, and how far each tensor moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastlora.recipes.picture import BLUE, GREY, INK, ORANGE, two_panels
from fastlora.recipes.walkthrough.results import Walk, WalkResult

# The base's colour, darker than the lines between phases.
_BASE: Final = "#777777"

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
    with two_panels(path, (1.5, 1)) as (curve, bars):
        _draw_losses(curve, result.pretrain, result.walks)
        _draw_changes(bars, result.ours)


def _draw_losses(axes: Any, pretrain: Sequence[float], walks: Mapping[str, Walk]) -> None:
    starts, count = {}, 0
    lengths = {"pretrain": len(pretrain), **{k: len(v) for k, v in walks["fastlora"].losses.items()}}
    for phase, length in lengths.items():
        starts[phase] = count + 1
        count += length
    axes.plot(range(1, len(pretrain) + 1), pretrain, color=_BASE, linewidth=1.6, label="all weights")
    axes.hlines(pretrain[-1], len(pretrain), starts["downstream"] - 0.5, color=_BASE, linestyle=":")
    # The markers distinguish the curves in a grey print.
    styles = {"fastlora": (BLUE, "-", "o", 4.5), "peft": (ORANGE, "--", "x", 7)}
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
            axes.axvline(start - 0.5, color=GREY, linewidth=0.8)
        middle = start + (lengths[phase] - 1) / 2
        axes.text(middle, highest * 1.32, _PHASES[phase], ha="center", va="top", fontsize=9, color=INK)
    axes.set_xlim(0.5, count + 0.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss of the epoch's batches")
    axes.set_title("Loss")
    axes.legend(loc="center left")


def _draw_changes(axes: Any, walk: Walk) -> None:
    names = list(walk.change)
    # B begins at 0, so it has no relative change.
    sizes = [walk.change[name] or 0.0 for name in names]
    axes.barh(range(len(names)), sizes, color=BLUE, zorder=2)
    for place, name in enumerate(names):
        what = "bit for bit the same"
        if walk.moved[name]:
            what = "moved away from 0" if walk.change[name] is None else f"{walk.change[name]:.2g}"
        axes.text(sizes[place], place, f" {what}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(*sizes, 1e-9) * 1.6)
    axes.set_xlabel("‖change‖ / ‖tensor before‖")
    axes.set_title("What fine-tuning moved (fastlora)")
    axes.grid(visible=False, axis="y")
