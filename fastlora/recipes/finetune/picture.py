"""The picture of the fine-tuning job: the loss of steps and evaluations, and how long rows are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastlora.recipes.picture import BLUE, GREY, VERMILION, two_panels

# Of the running mean that is drawn over the steps' losses.
_SPAN = 10


def draw_picture(
    path: Path,
    losses: Sequence[tuple[int, float]],
    evaluation: Sequence[tuple[int, float]],
    lengths: Sequence[int],
) -> None:
    """Write the picture.

    Args:
        path: The file to write.
        losses: (step, loss) of each step.
        evaluation: (step, loss) of each evaluation.
        lengths: Tokens of each sequence that was trained on.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    with two_panels(path, (2, 1)) as (curve, histogram):
        steps, values = [step for step, _ in losses], [loss for _, loss in losses]
        means = [sum(near := values[max(0, n - _SPAN) : n]) / len(near) for n in range(1, len(values) + 1)]
        curve.plot(steps, values, color=GREY, linewidth=0.8, label="each step")
        curve.plot(steps, means, color=BLUE, label=f"mean of {_SPAN} steps")
        if evaluation:
            curve.plot(*zip(*evaluation, strict=True), "o-", color=VERMILION, label="evaluation")
        curve.set_title("Loss")
        curve.set_xlabel("step")
        curve.legend()
        histogram.hist(list(lengths), bins=min(30, max(1, len(set(lengths)))), color=BLUE)
        histogram.set_title("Tokens in a sequence")
        histogram.set_ylabel("sequences")
