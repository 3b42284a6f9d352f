"""The safetensors format: writes tensors as its bytes, and checks its header entry by entry.

    u64 (little-endian): length of the header | header, JSON | the tensors' bytes, without gaps
    header    {"__metadata__": {str: str}, key: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}}

The safetensors library is not used, for two reasons. Saving must work without it. And it opens a path twice,
so that it would read two different files if the file was replaced in between.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastlora.adapter_files.errors import AdapterError

FLOATS: Final = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_WHOLE: Final = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_DTYPES: Final = {**FLOATS, **_WHOLE, "BOOL": torch.bool}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA: Final = "__metadata__"
# Enough for some 300,000 tensors. A header at the format's own limit, 100 MB, takes gigabytes once parsed.
LARGEST_HEADER: Final = 64 << 20
_MOST_DIMENSIONS: Final = 16


class Header(NamedTuple):
    """What a file's header says about a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Entry(NamedTuple):
    """A tensor in a file: its header, and where its bytes begin and end, counted from the first tensor's."""

    header: Header
    begin: int
    end: int


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file.

    Raises:
        AdapterError: If a tensor holds NaN or infinity, or has a dtype that could not be loaded.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise AdapterError(f"{key} must be of {', '.join(_DTYPES)} to be saved; it is {tensor.dtype}")
        if not tensor.isfinite().all():
            raise AdapterError(f"{key} must be finite to be saved; it holds NaN or infinity")
    # Wide dtypes first, so that each tensor begins at a multiple of its own width.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    header: dict[str, Any] = {_METADATA: {"format": "pt", **metadata}}
    end = 0
    for key in order:
        begin, end = end, end + tensors[key].numel() * tensors[key].element_size()
        name, shape = _NAMES[tensors[key].dtype], list(tensors[key].shape)
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = bytearray(end)
    for key in order:
        tensor, (begin, end) = tensors[key].detach(), header[key]["data_offsets"]
        if begin < end:
            raw = torch.frombuffer(body, dtype=torch.uint8, count=end - begin, offset=begin)
            raw.copy_(_little(tensor.contiguous().flatten().view(torch.uint8), tensor.element_size()))
    return len(text).to_bytes(8, "little") + text + body


def tensor_from(content: bytearray, header: Header) -> Tensor:
    """A tensor from its bytes in a file, sharing their memory where it can."""
    if not content:
        return torch.empty(header.shape, dtype=header.dtype, device="cpu")
    raw = torch.frombuffer(content, dtype=torch.uint8)
    return _little(raw, header.dtype.itemsize).view(header.dtype).view(header.shape)


def parse_header(text: bytes, length: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the tensors' entries in a header.

    Args:
        text: The header.
        length: The number of bytes after the header. The tensors must take up exactly these.

    Raises:
        AdapterError: If the header is invalid, or its tensors leave gaps, overlap or end elsewhere.
    """
    try:
        found = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged("its header is no object")
    metadata = found.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(f"{_METADATA} must map strings to strings")
    entries = {key: _entry(key, value) for key, value in found.items()}
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            raise _damaged(f"{key!r} must begin at {end}, as tensors lie without gaps; got {entry.begin}")
        end = entry.end
    if end != length:
        raise _damaged(f"its tensors have {end} bytes, and it holds {length}")
    return metadata, entries


def _entry(key: str, value: object) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(f"{key!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(f"{key!r} must have a name, sizes and two offsets")
    if dtype not in _DTYPES:
        raise AdapterError(f"{key} must be of {', '.join(_DTYPES)}; it is of {dtype}")
    header = Header(tuple(shape), _DTYPES[dtype])
    begin, end = offsets
    if end - begin != math.prod(shape) * header.dtype.itemsize:
        raise _damaged(f"{key!r} does not have as many bytes as its shape and dtype say")
    return Entry(header, begin, end)


def _are_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _little(raw: Tensor, width: int) -> Tensor:
    """Convert the bytes of numbers of this width between the machine's byte order and little-endian."""
    return raw if sys.byteorder == "little" else raw.view(-1, width).flip(1).flatten()


def _damaged(why: str) -> AdapterError:
    return AdapterError(f"must be a whole safetensors file; {why}")
