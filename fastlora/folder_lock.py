"""A lock on a folder, between processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_WAIT_SECONDS: Final = 0.01


@contextmanager
def alone_in(folder: Path, seconds: float) -> Iterator[None]:
    """Keep other processes from entering a block of the same folder; no lock where there can be none.

    Args:
        folder: It must exist.
        seconds: How long to wait. A holder for longer has the lock for something else; the block runs then.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(round(seconds / _WAIT_SECONDS)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_WAIT_SECONDS)
            except OSError:  # some network file systems
                break
        yield
    finally:
        os.close(descriptor)
