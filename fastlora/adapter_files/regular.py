"""Opens untrusted paths, but only regular files: opening a FIFO or device may hang or have side effects."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from fastlora.adapter_files.errors import AdapterError

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# If a FIFO replaces the file between the two checks, it is opened without waiting and then refused.
_FLAGS: Final = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
)


def check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise AdapterError unless a mode is a regular file's; IsADirectoryError if it is a directory's."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "must be a file; it is a directory", os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise AdapterError(f"{os.fspath(path)}: must be a regular file; it is {kind}")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; this never waits for another process.

    Raises:
        AdapterError: If it is not a regular file.
        OSError: If it is a directory, or cannot be opened.
    """
    check_regular(path, Path(path).stat().st_mode)  # a socket cannot be opened, and some devices act on it
    descriptor = os.open(path, _FLAGS)
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
