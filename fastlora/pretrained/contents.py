"""What an adapter on disk holds: its config and its tensors, known to agree before any tensor is read.

    tensors     base_model.model.<layer>.lora_A.weight [r, K], base_model.model.<layer>.lora_B.weight [N, r]
                base_model.model.<module to save>.<name in its state_dict>

The config is adapter_config.json beside adapter_model.safetensors; in a single file it is the metadata's
entry `adapter_config`. No model appears here; `load` fits the contents to one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import torch

from fastlora.pretrained.adapter_config import AdapterConfig
from fastlora.pretrained.errors import AdapterError
from fastlora.pretrained.tensors import FLOATS, Header, TensorFile, open_tensors
from fastlora.shelf import Options

CONFIG_FILE: Final = "adapter_config.json"
TENSOR_FILE: Final = "adapter_model.safetensors"
METADATA_KEY: Final = "adapter_config"

_PREFIX: Final = "base_model.model."
# Some 30,000 entries of rank_pattern.
_LARGEST_CONFIG: Final = 4 << 20
_LONGEST_NAME: Final = 256

# Endings of tensors of what is not plain LoRA on linear layers; `base_layer` and the others follow `lora_`.
_OTHERS: Final = {
    "lora_A.bias": "a bias of A",
    "lora_B.bias": "lora_bias",
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_embedding_A": "LoRA on an embedding",
    "lora_embedding_B": "LoRA on an embedding",
}


class LayerHeader(NamedTuple):
    """What an adapter says of one layer.

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


class Contents:
    """An open adapter.

    Attributes:
        config: Its config.
        file: Its tensors.
        layers: {layer: LayerHeader}.
        plain: {key without prefix: Header} of what belongs to modules to save.
    """

    def __init__(self, config: AdapterConfig, file: TensorFile) -> None:
        self.config, self.file = config, file
        names: dict[str, set[str]] = {}
        self.plain: dict[str, Header] = {}
        for key, header in file.headers.items():
            layer, letter = _split(key)
            if letter:
                names.setdefault(layer, set()).add(letter)
            else:
                self.plain[layer] = header
        alone = [layer for layer, letters in names.items() if len(letters) < 2]
        if alone:
            raise AdapterError(f"each layer must have A and B; {alone[0]!r} has one of them")
        if not names:
            raise AdapterError("must hold A and B of at least one layer; it holds none")
        if self.plain and not config.modules_to_save:
            raise AdapterError(f"{next(iter(self.plain))!r} must belong to modules_to_save, which is empty")
        self.layers = {layer: self._layer(layer) for layer in names}

    def _layer(self, name: str) -> LayerHeader:
        A, B = (self.file.headers[key] for key in layer_keys(name))
        # Patterns of the config are matched against it, in a time that grows with a power of its length.
        if len(name) > _LONGEST_NAME:
            raise AdapterError(
                f"names of layers must have at most {_LONGEST_NAME} letters; got {name[:40]!r}..."
            )
        r, config = self.config.rank(name), self.config
        if [len(A.shape), len(B.shape)] != [2, 2] or A.shape[0] != r or B.shape[1] != r:
            raise AdapterError(
                f"A and B of {name!r} must be [{r}, K] and [N, {r}]; got {list(A.shape)}, {list(B.shape)}"
            )
        if A.dtype != B.dtype or A.dtype not in FLOATS.values():
            raise AdapterError(
                f"A and B of {name!r} must have one dtype of {', '.join(FLOATS)}; got {A.dtype}, {B.dtype}"
            )
        options = Options(r, config.alpha_of(name), config.dropout, config.rslora, config.init)
        return LayerHeader(options, A.shape[1], B.shape[0], A.dtype)


@contextmanager
def open_directory(directory: str | os.PathLike[str]) -> Iterator[Contents]:
    """Open an adapter in PEFT's layout; every fault in it, also later in the block, is an AdapterError.

    Raises:
        AdapterError: If a file is damaged, the two do not agree, or hold what is not supported.
        ImportError: If safetensors is not installed.
        OSError: If a file cannot be opened.
    """
    folder = Path(directory)
    path = folder / CONFIG_FILE
    with path.open("rb") as file:
        text = file.read(_LARGEST_CONFIG + 1)
    if len(text) > _LARGEST_CONFIG:
        raise AdapterError(f"{path}: must be at most {_LARGEST_CONFIG:,} bytes")
    if not (folder / TENSOR_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder}: must hold {TENSOR_FILE}; adapter_model.bin is a pickle, which may run any code (have "
            "its author save it as safetensors)"
        )
    try:
        config = AdapterConfig.loads(text)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    with open_tensors(folder / TENSOR_FILE) as tensors:
        yield Contents(config, tensors)


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[Contents]:
    """Open an adapter in a single file; faults and errors are `open_directory`'s."""
    with open_tensors(path) as file:
        if METADATA_KEY not in file.metadata:
            raise AdapterError(
                f"must be a file that save_adapter wrote; its metadata have no {METADATA_KEY!r} entry (for "
                "PEFT's directories there is load_pretrained)"
            )
        yield Contents(AdapterConfig.loads(file.metadata[METADATA_KEY]), file)


def layer_keys(layer: str) -> tuple[str, str]:
    """The keys of A and B of a layer."""
    prefix = f"{_PREFIX}{layer}." if layer else _PREFIX
    return prefix + "lora_A.weight", prefix + "lora_B.weight"


def plain_key(name: str) -> str:
    """The key of a tensor of a module to save."""
    return _PREFIX + name


def _split(key: str) -> tuple[str, str]:
    """(layer, "A" or "B"), or (name, "") for a tensor of a module to save."""
    if not key.startswith(_PREFIX):
        raise AdapterError(f"tensors must be named {_PREFIX}<name>, as PEFT names them; got {key!r}")
    name = key.removeprefix(_PREFIX)
    for ending, what in _OTHERS.items():
        if name == ending or name.endswith("." + ending):
            raise AdapterError(f"{key!r} is {what}, which is not supported")
    for letter in ("A", "B"):
        if name == f"lora_{letter}.weight":
            return "", letter
        if name.endswith(f".lora_{letter}.weight"):
            return name.removesuffix(f".lora_{letter}.weight"), letter
    if "lora_" in name or ".base_layer." in name:
        raise AdapterError(f"{key!r} is no tensor of plain LoRA, and not supported")
    return name, ""
