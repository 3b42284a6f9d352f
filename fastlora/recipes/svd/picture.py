"""The picture of a matrix's singular values, and of the error and size of its factors at each rank."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fastlora.recipes.picture import BLUE, GREEN, GREY, INK, VERMILION, two_panels

# More stems than this cannot be told apart; an area is drawn instead.
_MOST_STEMS: Final = 64


def draw_spectrum(S: Sequence[float], shape: tuple[int, int], r: int, source: str, path: Path) -> None:
    """Draw a PNG of 1,800 x 720 pixels.

    Args:
        S: All singular values, in descending order.
        shape: (N, K).
        r: The number of singular values kept.
        source: A description of the matrix, for the title.
        path: The file to write.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    with two_panels(path, title=source) as (values, loss):
        from matplotlib.ticker import MaxNLocator

        _draw_values(values, S, r)
        _draw_loss(loss, S, shape, r)
        for axes in (values, loss):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_values(axes: Any, S: Sequence[float], r: int) -> None:
    # Zero has no logarithm; below a billionth of the largest value, all is fp32's rounding.
    least = max(S[0] * 1e-9, 1e-30)
    shown = [max(value, least) for value in S]
    places = range(1, len(S) + 1)
    for colour, label, part in ((BLUE, f"kept: {r}", slice(r)), (GREY, "left out", slice(r, None))):
        if not shown[part]:
            continue
        if len(S) <= _MOST_STEMS:
            axes.vlines(places[part], least / 3, shown[part], color=colour, linewidth=2)
            axes.plot(places[part], shown[part], "o", color=colour, markersize=5, label=label)
        else:
            edges = [place - 0.5 for place in (*places[part], places[part][-1] + 1)]
            axes.stairs(shown[part], edges, baseline=least / 3, fill=True, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xlim(0.5 - len(S) / 50, len(S) + 0.5 + len(S) / 50)
    axes.set_ylim(min(shown) / 3, max(shown) * 3)
    axes.set_xlabel("i")
    axes.set_ylabel("singular value $S_i$")
    axes.set_title("Singular values")
    axes.legend()


def _draw_loss(axes: Any, S: Sequence[float], shape: tuple[int, int], r: int) -> None:
    squares = [value * value for value in S]
    # Summed from the smallest up: a difference of large sums would be all rounding.
    tails = [0.0, *itertools.accumulate(reversed(squares))][::-1]
    whole = tails[0] or 1.0
    N, K = shape
    ranks = range(len(S) + 1)
    axes.plot(
        ranks, [100 * math.sqrt(t / whole) for t in tails], color=VERMILION, label="error ‖W - BA‖ / ‖W‖"
    )
    axes.plot(ranks, [100 * k * (N + K) / (N * K) for k in ranks], color=GREEN, linestyle="--",
              label="parameters of B and A / of W")  # fmt: skip
    axes.axvline(r, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate(f"r = {r}", (r, 100), xytext=(4, 2), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlim(0, len(S))
    axes.set_ylim(0, 115)
    axes.set_xlabel("rank r of B A")
    axes.set_ylabel("percent")
    axes.set_title("What factors lose, and what they cost")
    axes.legend(loc="center right")
