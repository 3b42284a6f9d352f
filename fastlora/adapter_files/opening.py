"""Opens an adapter on disk: a directory in PEFT's layout, or a single file.

The config is in adapter_config.json next to adapter_model.safetensors; in a single file it is the metadata's
entry `adapter_config`.

A save replaces each of the two files atomically, but not both at once. So the tensors' metadata hold a digest
of the config that was saved with them. If config and digest do not match, a load waits a little, in case a
save is in progress. After that, a config older than the tensors is an error: a save was interrupted. A newer
one was edited by hand; it is used, with a warning. Files without a digest, such as PEFT's, are not checked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from fastlora.adapter_files.adapter_config import CONFIG_FILE, LARGEST_CONFIG, AdapterConfig, digest
from fastlora.adapter_files.contents import Contents
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.foreign import check_layout
from fastlora.adapter_files.regular import open_regular
from fastlora.adapter_files.tensors import open_tensors
from fastlora.warning import warn

TENSOR_FILE: Final = "adapter_model.safetensors"
METADATA_KEY: Final = "adapter_config"
DIGEST_KEY: Final = "fastlora_config_digest"

# Seconds to wait for a save in progress. Its two renames are microseconds apart, unless it was killed there.
_WAITS: Final = (0.001, 0.004, 0.015, 0.05, 0.15, 0.3)


@contextmanager
def open_directory(directory: str | os.PathLike[str]) -> Iterator[Contents]:
    """Open an adapter in PEFT's layout. A fault found later, in the `with` block, is an AdapterError too.

    Raises:
        AdapterError: If a file is damaged or holds something unsupported, or the two files do not match.
        ImportError: If safetensors is not installed.
        OSError: If a file cannot be opened.
    """
    folder = Path(directory)
    for wait in (*_WAITS, 0):
        # The config is read first. A save writes it last, so it is never from a later save than the tensors.
        found = _read_config(folder)
        with open_tensors(folder / TENSOR_FILE) as file:
            if found.digest == file.metadata.get(DIGEST_KEY, found.digest):
                yield Contents(found.config, file)
                return
            if found.written_ns > file.written_ns:
                _warn_of_edit(folder)
                yield Contents(found.config, file)
                return
        time.sleep(wait)
    raise AdapterError(
        f"{folder}: {CONFIG_FILE} and {TENSOR_FILE} do not belong together: a save was stopped between the "
        "two, or one was put in place of another. Save the adapter again; or, if the config was edited on "
        f"purpose, write it once more after {TENSOR_FILE}, as an edit is told by its younger date"
    )


class _Found(NamedTuple):
    """A config file: what it says, its digest, and when it was last written, in ns since the epoch."""

    config: AdapterConfig
    digest: str
    written_ns: int


def _read_config(folder: Path) -> _Found:
    path = folder / CONFIG_FILE
    if not (folder / TENSOR_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}: must hold {TENSOR_FILE}; adapter_model.bin is a pickle, which may run any code (have "
            "its author save it as safetensors)"
        )
    with open_regular(path) as file:
        text = file.read(LARGEST_CONFIG + 1)
        written_ns = os.fstat(file.fileno()).st_mtime_ns
    try:
        return _Found(AdapterConfig.loads(text), digest(text), written_ns)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error


def _warn_of_edit(folder: Path) -> None:
    warn(
        f"{folder}: {CONFIG_FILE} was changed after it was saved with {TENSOR_FILE}; it is taken as it "
        "is now",
    )


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[Contents]:
    """Open an adapter in a single file; it raises what `open_directory` raises."""
    with open_tensors(path) as file:
        if METADATA_KEY not in file.metadata:
            check_layout(file.headers)
            raise AdapterError(
                f"must be a file that save_adapter wrote; its metadata have no {METADATA_KEY!r} entry (for "
                "PEFT's directories there is load_pretrained)"
            )
        yield Contents(AdapterConfig.loads(file.metadata[METADATA_KEY]), file)
