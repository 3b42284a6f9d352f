"""One safetensors file, opened once: its header is checked first, each tensor read when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

import torch
from torch import Tensor

from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.layout import LARGEST_HEADER, Entry, parse_header, tensor_from
from fastlora.adapter_files.regular import open_regular


class TensorFile:
    """An open safetensors file; a file that replaces it by name is not seen.

    Attributes:
        metadata: Its metadata.
        headers: {key: Header}.
        written_ns: When it was last written to, in ns since the epoch.
    """

    def __init__(self, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        self._file, self._state = file, (state.st_size, state.st_mtime_ns)
        self.written_ns = state.st_mtime_ns
        size = int.from_bytes(file.read(8), "little")
        if state.st_size < 8 or size > min(state.st_size - 8, LARGEST_HEADER):
            raise AdapterError(
                f"must be a whole safetensors file; of {state.st_size} bytes its header has {size}"
            )
        self._start = 8 + size
        self.metadata: Mapping[str, str]
        self._entries: Mapping[str, Entry]
        self.metadata, self._entries = parse_header(file.read(size), state.st_size - self._start)
        self.headers = {key: entry.header for key, entry in self._entries.items()}
        self._check_unchanged()

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other keys; {key: new key} of all."""
        self._entries = {names[key]: entry for key, entry in self._entries.items()}
        self.headers = {key: entry.header for key, entry in self._entries.items()}

    def read(self, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A tensor on a device and in a dtype.

        Raises:
            AdapterError: If it is not finite, in the file or in this dtype; or the file was written to.
        """
        entry = self._entries[key]
        content = bytearray(entry.end - entry.begin)
        self._file.seek(self._start + entry.begin)
        self._file.readinto(content)  # type: ignore[attr-defined]
        self._check_unchanged()
        tensor = tensor_from(content, entry.header).to(device=device, dtype=dtype)
        if not tensor.isfinite().all():
            raise AdapterError(f"{key} must be finite in {dtype}; it holds NaN or infinity")
        return tensor

    def _check_unchanged(self) -> None:
        """Raise AdapterError where somebody wrote into this very file, as those do who replace none."""
        state = os.fstat(self._file.fileno())
        if (state.st_size, state.st_mtime_ns) != self._state:
            raise AdapterError("must stay as it is while it is read; it was written to (load it again)")


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file; every fault in it, also later in the block, is an AdapterError naming it.

    Raises:
        AdapterError: If the file is truncated, damaged, of another format or no regular file.
        OSError: If the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            yield TensorFile(file)
        except AdapterError as error:
            raise AdapterError(f"{os.fspath(path)}: {error}") from error
