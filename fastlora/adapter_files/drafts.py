"""Writes files that belong together: first all as drafts (temporary files), then each is renamed into place.

A draft's name contains its process. If a process was killed, the next write into the directory deletes its
drafts: at once if the process ran on this machine and is certainly dead, else after a day.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from fastlora.adapter_files.regular import check_regular
from fastlora.folder_lock import alone_in

_DRAFT: Final = re.compile(r"\.fastlora-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]+\.tmp")
_OLD_DRAFT_SECONDS: Final = 24 * 3600
# How long to wait for the lock, which is held only for renames, which take microseconds.
_LOCK_SECONDS: Final = 1.0


def write_together(files: Sequence[tuple[str | os.PathLike[str], bytes]]) -> None:
    """Write files so that each appears complete or not at all, and none before all are on the disk.

    A file that is replaced keeps its permissions, and a link stays a link. An interrupt between two renames
    is raised after the last one. Only if the process dies between them is there a mix of two saves; the files
    given first are then the new ones.

    Args:
        files: (path, content) of each.

    Raises:
        AdapterError: If a path is a FIFO, a socket or a device.
        OSError: If a file cannot be written; then no file is changed.
    """
    places = [(_place(Path(path)), content) for path, content in files]
    for folder in {target.parent for target, _ in places}:
        _sweep(folder)
    with ExitStack() as undo:
        drafts: list[tuple[Path, Path]] = []
        for target, content in places:
            draft = target.with_name(_draft_name())
            undo.callback(draft.unlink, missing_ok=True)
            _write(draft, content, target)
            drafts.append((draft, target))
        _put_in_place(drafts)


def _place(path: Path) -> Path:
    """The path of a file to write, with links resolved; raises if something else than a file is there."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "path must be a file; it is a link to itself", os.fspath(path))
    if target.is_dir():
        raise IsADirectoryError(f"path must be a file; {path} is a directory")
    if target.exists():
        check_regular(path, target.stat().st_mode)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing directory; {target.parent} is none")
    return target


def _write(draft: Path, content: bytes, target: Path) -> None:
    """Write a draft to the disk, with the owner and permissions of the file that it will replace."""
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    # Until the draft has the permissions of the old file, nobody else may read it.
    mode = 0o666 if old is None else 0o600
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(draft, flags, mode), "wb") as file:
        if old is not None and hasattr(os, "fchown"):
            with suppress(OSError):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
        if old is not None:
            draft.chmod(stat.S_IMODE(old.st_mode))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(drafts: Sequence[tuple[Path, Path]]) -> None:
    folders = dict.fromkeys(target.parent for _, target in drafts)
    with ExitStack() as locks:
        # Always in the same order; otherwise two saves could wait for each other.
        for folder in sorted(folders):
            locks.enter_context(alone_in(folder, _LOCK_SECONDS))
        # Under the lock, all drafts get new times, the last file the oldest. So a mix of files from two saves
        # never looks to a load as if the older files had been edited.
        for draft, _ in reversed(drafts):
            os.utime(draft)
        try:
            for draft, target in drafts:
                draft.replace(target)
        except OSError:
            raise
        except BaseException:
            for draft, target in drafts:
                with suppress(FileNotFoundError):  # in place already
                    draft.replace(target)
            raise
    for folder in folders:
        _sync(folder)


def _sync(folder: Path) -> None:
    """Make renames in a directory survive a power failure, if the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _draft_name() -> str:
    pid = os.getpid()
    return f".fastlora-{_machine()}-{pid}-{_started(pid) or 0}-{secrets.token_hex(8)}.tmp"


def _sweep(folder: Path) -> None:
    """Delete the drafts of killed processes."""
    with suppress(OSError):
        for draft in folder.glob(".fastlora-*.tmp"):
            with suppress(OSError):
                if _is_stale(draft):
                    draft.unlink()


def _is_stale(draft: Path) -> bool:
    found = _DRAFT.fullmatch(draft.name)
    if found and found[1] == _machine():
        return not _may_live(int(found[2]), int(found[3]))
    return time.time() - draft.lstat().st_mtime > _OLD_DRAFT_SECONDS


def _may_live(pid: int, started: int) -> bool:
    if started:
        return _started(pid) == started
    if os.name != "posix":  # there os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _machine() -> str:
    """A hash of what makes a pid unique: the machine, its boot, and its container."""
    marks = [platform.node()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if it does not exist or the system does not say."""
    try:
        # The fields after the program's name, which may itself contain spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
