"""Failures that do not end a run: time on a GPU is too scarce to end it for one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def on_record(problems: list[str], where: str) -> Iterator[None]:
    """Turn an exception in the block into a line of `problems`, and go on behind the block.

    Args:
        problems: What went wrong so far.
        where: What the block does, and to what.
    """
    try:
        yield
    except Exception as error:
        first_line = str(error).split("\n", 1)[0]
        problems.append(f"{where}: {type(error).__name__}: {first_line}")
