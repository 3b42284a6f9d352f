"""One safetensors file: written whole or not at all, and read by its header first."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlora.pretrained.errors import AdapterError

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES = {**FLOATS, **_WHOLE, "BOOL": torch.bool}


class Header(NamedTuple):
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFile:
    """An open safetensors file.

    Attributes:
        metadata: Its metadata.
        headers: {key: Header}.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.metadata: Mapping[str, str] = file.metadata() or {}
        self.headers = {key: self._header(key) for key in file.keys()}  # noqa: SIM118 - no mapping

    def _header(self, key: str) -> Header:
        found = self._file.get_slice(key)
        if found.get_dtype() not in _DTYPES:
            raise AdapterError(f"{key} must be of {', '.join(_DTYPES)}; it is of {found.get_dtype()}")
        return Header(tuple(found.get_shape()), _DTYPES[found.get_dtype()])

    def read(self, key: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A tensor on a device and in a dtype.

        Raises:
            AdapterError: If it is not finite, in the file or in this dtype.
        """
        tensor: Tensor = self._file.get_tensor(key).to(device=device, dtype=dtype)
        if not tensor.isfinite().all():
            raise AdapterError(f"{key} must be finite in {dtype}; it holds NaN or infinity")
        return tensor


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file; every fault in it, also later in the block, is an AdapterError naming it.

    Raises:
        AdapterError: If the file is truncated, damaged or of another format.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be opened.
    """
    safetensors = _import_safetensors()
    with Path(path).open("rb"):  # else a missing file or a directory is whatever safetensors makes of it
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield TensorFile(file)
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{os.fspath(path)}: must be a whole safetensors file; {error}") from error
    except AdapterError as error:
        raise AdapterError(f"{os.fspath(path)}: {error}") from error


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file.

    Raises:
        AdapterError: If a tensor holds NaN or infinity: the file could not be loaded.
        ImportError: If safetensors is not installed.
    """
    safetensors = _import_safetensors()
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise AdapterError(f"{key} must be finite to be saved; it holds NaN or infinity")
    # Copies: safetensors refuses tensors that share memory, and wants each contiguous.
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(own, {"format": "pt", **metadata})
    return content


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears whole or not at all.

    It is written under another name in the same directory, flushed to the disk and renamed.

    Raises:
        OSError: If it cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path must be a file; {target} is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing directory; {target.parent} is none")
    draft = target.with_name(f".fastlora-{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _import_safetensors() -> Any:
    try:
        import numpy  # noqa: F401 - safetensors.torch writes with it, and does not require it
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f'adapter files need {error.name}: pip install "fastlora-triton[adapters]"', name=error.name
        ) from error
    return safetensors
