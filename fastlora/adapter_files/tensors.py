"""One safetensors file, opened once. Its header is checked first; a tensor is read when it is needed."""

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
    """An open safetensors file. If another file takes its name, this one is still read.

    Attributes:
        metadata: The metadata in its header.
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
        """Rename the tensors, given {key: new key} for all of them."""
        self._entries = {names[key]: entry for key, entry in self._entries.items()}
        self.headers = {key: entry.header for key, entry in self._entries.items()}

    def read(self, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Read a tensor, convert it to a dtype and move it to a device.

        Raises:
            AdapterError: If it is not finite in the file or in this dtype, or the file was written to.
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
        """Raise AdapterError if the file itself was written to, instead of being replaced by a new one."""
        state = os.fstat(self._file.fileno())
        if (state.st_size, state.st_mtime_ns) != self._state:
            raise AdapterError("must stay as it is while it is read; it was written to (load it again)")


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file. An AdapterError for it, also later in the `with` block, names the file.

    Raises:
        AdapterError: If the file is truncated, damaged, in another format, or not a regular file.
        OSError: If the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            yield TensorFile(file)
        except AdapterError as error:
            raise AdapterError(f"{os.fspath(path)}: {error}") from error
