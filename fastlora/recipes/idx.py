"""IDX, the file format of MNIST, read strictly.

    bytes 0-1   zero
    byte 2      element type; 0x08 is unsigned byte, the only one MNIST uses
    byte 3      number of dimensions
    then        each dimension as a big-endian uint32, then the elements, last dimension fastest

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_UNSIGNED_BYTE = 0x08
_PIECE = 2**20


class DigitsError(ValueError):
    """Files of digits are damaged, of another kind or do not match, or there are too few digits."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The elements of an IDX file of unsigned bytes, as a uint8 tensor.

    Args:
        path: The file; gzipped if its name ends in .gz.
        dimensions: The number of dimensions that it must have: 3 for images, 1 for labels.

    Raises:
        DigitsError: If the file is damaged, truncated or longer than its header says, or has another element
            type or number of dimensions.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as raw:
        try:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    return _parse(unzipped, dimensions)
            return _parse(raw, dimensions)
        except DigitsError as error:
            raise DigitsError(f"{path}: {error}") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DigitsError(f"{path}: must be a whole gzip file; {error}") from error


def _parse(file: BinaryIO | gzip.GzipFile, dimensions: int) -> Tensor:
    magic = _read_header(file, 4)
    if magic[:2] != b"\0\0":
        raise DigitsError(
            f"must start with two zero bytes, as IDX files do; it starts with {magic[:2].hex()}"
        )
    if magic[2] != _UNSIGNED_BYTE:
        raise DigitsError(f"must hold unsigned bytes (type 0x08); its type is 0x{magic[2]:02x}")
    if magic[3] != dimensions:
        raise DigitsError(f"must have {dimensions} dimension(s); it has {magic[3]}")
    sizes = _read_header(file, 4 * dimensions)
    shape = [int.from_bytes(sizes[start : start + 4], "big") for start in range(0, len(sizes), 4)]
    expected = math.prod(shape)
    # One byte more than expected: reading past the end also makes gzip verify its checksum.
    content = _read(file, expected + 1)
    if len(content) > expected:
        raise DigitsError(f"must end after the {expected} bytes that its shape {shape} asks for; it goes on")
    if len(content) < expected:
        raise DigitsError(
            f"must hold the {expected} bytes that its shape {shape} asks for; got {len(content)}"
        )
    if expected == 0:
        raise DigitsError(f"must hold at least one element; its shape is {shape}")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def _read_header(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    content = _read(file, size)
    if len(content) < size:
        raise DigitsError("must be an IDX file; it ends inside its header")
    return content


def _read(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """Read up to `size` bytes, piecewise: read(size) would allocate whatever a damaged header claims."""
    content = bytearray()
    while piece := file.read(min(size - len(content), _PIECE)):
        content += piece
    return content
