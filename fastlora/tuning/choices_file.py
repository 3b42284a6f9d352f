"""Writes the file of choices: whole or not at all, and beside what another process wrote meanwhile."""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from fastlora.folder_lock import alone_in
from fastlora.routes.choices import current_versions, forget_choices, read_file
from fastlora_kernels.choice_content import Choices, as_content

_INSTEAD: Final = "say another place by FASTLORA_TUNE_FILE or --out"
# How long to wait for the lock, which is held while one small file is read and written.
_LOCK_SECONDS: Final = 5.0


def check_place(path: Path) -> None:
    """Make a file's folder, and see that a file can be written there.

    Raises:
        OSError: If it cannot, or if something else than a file is there.
    """
    try:
        folder = _target(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"{error.strerror or error}; {_INSTEAD}"
        raise OSError(error.errno, f"the choices cannot be written to {path.parent}: {why}") from error


def add_choices(made: Choices, path: Path) -> None:
    """Write choices, beside those in the file that hold for the same GPU, kernels and Triton.

    Nobody else's `add_choices` comes between reading and writing, where the file system has locks.

    Raises:
        OSError: If the file cannot be written.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(target.parent, _LOCK_SECONDS):
        try:
            before = read_file(target)
            same = all(before.metadata.get(of) == made.metadata[of] for of in ("gpu", *current_versions()))
        except (ValueError, OSError):
            same = False
        write_choices(Choices(made.metadata, {**before.entries, **made.entries}) if same else made, target)


def write_choices(choices: Choices, path: Path) -> None:
    """Write a file whole, or leave what was there; a link stays a link.

    Raises:
        OSError: If it cannot be written, or if something else than a file is there.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(as_content(choices), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    forget_choices()


def _target(path: Path) -> Path:
    """The file to write, with links resolved; a device or a pipe would be lost under the new file."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, f"{path} is a link to itself")
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{path} must be a file; it is a folder, a device or a pipe")
    return target
