"""What the jobs' pictures have in common: two panels side by side, in one style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

# From Okabe and Ito's palette, whose colours the colour-blind can tell apart.
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
INK: Final = "#333333"
GREY: Final = "#BBBBBB"

# Horizontal grid lines; no frame at the top and on the right.
_STYLE: Final[dict[Any, Any]] = {
    "figure.figsize": (12, 4.8),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.framealpha": 1,
    "legend.edgecolor": "none",
}


@contextmanager
def two_panels(
    path: Path, widths: tuple[float, float] = (1, 1), title: str = ""
) -> Iterator[tuple[Any, Any]]:
    """The axes of both panels, to draw on in a `with` block; then a PNG of 1,800 x 720 pixels is written.

    Args:
        path: The file to write.
        widths: The widths of the panels, relative to each other.
        title: The title above both, taken literally.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib: pip install "fastlora-triton[demo]"', name=error.name
        ) from error
    with rc_context(_STYLE):
        figure = Figure()
        left, right = figure.subplots(1, 2, width_ratios=widths)
        yield left, right
        if title:
            figure.suptitle(title, fontsize=12, parse_math=False)
        figure.savefig(path, format="png")
