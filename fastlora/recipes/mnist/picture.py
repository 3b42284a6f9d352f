"""The picture of the MNIST job: wrong counts of each digit, and the loss while fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlora.recipes.picture import BLUE, INK, ORANGE, SKY, two_panels

# About a tenth of fp32's rounding: below it, the loss of a batch of 10 cannot be told from 0.
_LEAST_LOSS = 1e-8


def draw_picture(
    path: Path,
    base: Sequence[int],
    on: Sequence[int],
    off: Sequence[int] | None,
    digit: int,
    losses: Sequence[float],
) -> None:
    """Draw a PNG of 1,800 x 720 pixels.

    Args:
        path: The file to write.
        base: Wrong counts of the ten digits before fine-tuning.
        on: Wrong counts after it, with LoRA on.
        off: Wrong counts after it, with LoRA off; None if all weights were trained.
        digit: The digit that was trained on.
        losses: The loss of each batch.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    # The hatching distinguishes the bars in a grey print.
    series = [("base net", base, BLUE, "")]
    if off is None:
        series += [("all weights fine-tuned", on, ORANGE, "///")]
    else:
        series += [("LoRA on", on, ORANGE, "///"), ("LoRA off", off, SKY, "...")]
    with two_panels(path, (2.2, 1)) as (bars, curve):
        _draw_counts(bars, series, digit)
        _draw_losses(curve, losses, digit)


def _draw_counts(axes: Any, series: Sequence[tuple[str, Sequence[int], str, str]], digit: int) -> None:
    width = 0.84 / len(series)
    highest = max(1, *(max(counts) for _, counts, _, _ in series))
    axes.axvspan(digit - 0.5, digit + 0.5, color="#EEEEEE", zorder=0)
    for place, (label, counts, colour, hatch) in enumerate(series):
        left = [d + (place - (len(series) - 1) / 2) * width for d in range(len(counts))]
        drawn = axes.bar(
            left, counts, width, label=label, color=colour, hatch=hatch, edgecolor="white", zorder=2
        )
        axes.bar_label(drawn, fontsize=7, padding=1.5, color=INK)
    axes.set_xticks(range(len(series[0][1])))
    axes.get_xticklabels()[digit].set_fontweight("bold")
    axes.set_xlim(-0.5, len(series[0][1]) - 0.5)
    axes.set_ylim(0, highest * 1.22)
    axes.set_xlabel(f"digit (grey: fine-tuned on {digit} alone)")
    axes.set_ylabel("wrong test digits")
    axes.set_title("Wrong counts per digit")
    axes.legend(loc="upper center", ncols=len(series))


def _draw_losses(axes: Any, losses: Sequence[float], digit: int) -> None:
    # A few batches have the last hard digits; on a linear axis one would see nothing else. In fp32 the loss
    # of a batch that is surely right rounds to 0, which has no logarithm.
    shown = [max(loss, _LEAST_LOSS) for loss in losses]
    axes.plot(range(1, len(losses) + 1), shown, color=ORANGE, linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xlabel("batch")
    axes.set_ylabel(f"cross-entropy (0 drawn at {_LEAST_LOSS:g})")
    axes.set_title(f"Loss while fine-tuning on {digit}")
