"""A warning that shows the line that called the library, however deep inside it is found."""

from __future__ import annotations

import sys
import warnings
from typing import Final

# What stands between a caller's line and ours: wrappers, modules' calls and optimizers' steps.
_INSIDE: Final = frozenset(("fastlora", "torch", "contextlib"))


def warn(text: str) -> None:
    """Warn with a UserWarning. Not for code that torch.compile traces, which cannot look at frames."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
