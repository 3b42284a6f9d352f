"""The adapter file: A and B of each LoRA layer in one safetensors file, the tensors named as PEFT names them.

    tensors     base_model.model.<layer>.lora_A.weight [r, K], base_model.model.<layer>.lora_B.weight [N, r]
    metadata    format = "pt"
                fastlora = {"version": 1, "layers": {<layer>: {r, alpha, rslora, dropout, init}}}

No model appears here; `adapters` fits a file to one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlora import config

_VERSION = 1
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class AdapterError(ValueError):
    """An adapter file is damaged or foreign, or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a layer's update is scaled, regularized and started; the names are FusedLoRALinear's.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of range.
    """

    r: int
    alpha: float
    rslora: bool
    dropout: float
    init: str

    def __post_init__(self) -> None:
        config.check_rank(self.r)
        if config.check_alpha(self.alpha) is None:
            raise TypeError("alpha must be a finite number; got None")
        config.check_bool(self.rslora, "rslora")
        config.check_dropout(self.dropout)
        config.check_init(self.init)


class Header(NamedTuple):
    """What a file says of one layer, before any tensor is read.

    Attributes:
        options: The update's options.
        in_features: K.
        out_features: N.
        dtype: Of A and B.
    """

    options: Options
    in_features: int
    out_features: int
    dtype: torch.dtype


class AdapterFile:
    """An open adapter file whose header is known to be sound; `headers` is {layer: Header}."""

    def __init__(self, file: Any) -> None:
        self._file = file
        options = _options(file.metadata() or {})
        expected = {key for name in options for key in _keys(name)}
        found = set(file.keys())
        for what, keys in (("is missing", expected - found), ("is not described", found - expected)):
            if keys:
                raise AdapterError(f"each layer must have A and B and nothing else; {_some(keys)} {what}")
        self.headers = {name: self._header(name, chosen) for name, chosen in options.items()}

    def _header(self, name: str, options: Options) -> Header:
        A, B = (self._file.get_slice(key) for key in _keys(name))
        shapes, dtypes = (A.get_shape(), B.get_shape()), (A.get_dtype(), B.get_dtype())
        r = options.r
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != r or shapes[1][1] != r:
            raise AdapterError(
                f"A and B of {name!r} must be [{r}, K] and [N, {r}]; got {shapes[0]}, {shapes[1]}"
            )
        if dtypes[0] != dtypes[1] or dtypes[0] not in _DTYPES:
            raise AdapterError(
                f"A and B of {name!r} must have one dtype of {', '.join(_DTYPES)}; got {', '.join(dtypes)}"
            )
        return Header(options, shapes[0][1], shapes[1][0], _DTYPES[dtypes[0]])

    def read(self, name: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B of a layer on a device and in a dtype.

        Raises:
            AdapterError: If either is not finite, in the file or in this dtype.
        """
        A, B = (self._file.get_tensor(key).to(device=device, dtype=dtype) for key in _keys(name))
        for letter, tensor in (("A", A), ("B", B)):
            if not tensor.isfinite().all():
                raise AdapterError(
                    f"{letter} of {name!r} must be finite in {dtype}; it holds NaN or infinity"
                )
        return A, B


@contextmanager
def open_adapter_file(path: str | os.PathLike[str]) -> Iterator[AdapterFile]:
    """Open an adapter file; every fault found in it, also later in the block, is an AdapterError naming it.

    Raises:
        AdapterError: If the file is truncated, damaged, or not one that `write_adapter_file` wrote.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be opened.
    """
    safetensors = _import_safetensors()
    with Path(path).open("rb"):  # else a missing file or a directory is whatever safetensors makes of it
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield AdapterFile(file)
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{os.fspath(path)}: must be a whole safetensors file; {error}") from error
    except AdapterError as error:
        raise AdapterError(f"{os.fspath(path)}: {error}") from error


def write_adapter_file(
    path: str | os.PathLike[str], layers: Mapping[str, tuple[Options, Tensor, Tensor]]
) -> None:
    """Write {layer: (options, A, B)}; the file appears whole or not at all.

    It is written under another name in the same directory, flushed to the disk and renamed.

    Raises:
        AdapterError: If a tensor holds NaN or infinity: the file could not be loaded.
        ImportError: If safetensors is not installed.
        OSError: If the file cannot be written.
    """
    safetensors = _import_safetensors()
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path must be a file; {target} is a directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing directory; {target.parent} is none")
    tensors: dict[str, Tensor] = {}
    for name, (_, A, B) in layers.items():
        for key, tensor in zip(_keys(name), (A, B), strict=True):
            if not tensor.isfinite().all():
                raise AdapterError(f"{key} must be finite to be saved; it holds NaN or infinity")
            tensors[key] = tensor.detach().cpu().contiguous()
    described = {"version": _VERSION, "layers": {name: asdict(entry[0]) for name, entry in layers.items()}}
    content = safetensors.torch.save(tensors, {"format": "pt", "fastlora": json.dumps(described)})
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


def _keys(name: str) -> tuple[str, str]:
    prefix = f"base_model.model.{name}." if name else "base_model.model."
    return prefix + "lora_A.weight", prefix + "lora_B.weight"


def _options(metadata: Mapping[str, str]) -> dict[str, Options]:
    """The layers that the metadata describe; every value is checked, as anything may stand there."""
    if "fastlora" not in metadata:
        raise AdapterError(
            "must be an adapter that save_adapter wrote; its metadata have no 'fastlora' entry"
        )
    try:
        described = json.loads(metadata["fastlora"])
        if described["version"] != _VERSION:
            raise AdapterError(f"must be of version {_VERSION}; its version is {described['version']!r}")
        options = {name: Options(**values) for name, values in described["layers"].items()}
    except AdapterError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(
            f"its metadata must describe each layer; {type(error).__name__}: {error}"
        ) from error
    if not options:
        raise AdapterError("must describe at least one layer; it describes none")
    return options


def _some(keys: set[str]) -> str:
    first, *rest = sorted(keys)
    return f"{first} (and {len(rest)} more)" if rest else first


def _import_safetensors() -> Any:
    try:
        import numpy  # noqa: F401 - safetensors.torch writes with it, and does not require it
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f'adapter files need {error.name}: pip install "fastlora-triton[adapters]"', name=error.name
        ) from error
    return safetensors
