"""The names of the tensors in an adapter's file.

base_model.model.<layer>.lora_A.weight [r, K], base_model.model.<layer>.lora_B.weight [N, r]
base_model.model.<module to save>.<name in its state_dict>
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.foreign import check_layout

_PREFIX: Final = "base_model.model."
_LONGEST_NAME: Final = 256
# Name endings of tensors that are not plain LoRA on linear layers, and what they are.
_OTHERS: Final = {
    "lora_A.bias": "a bias of A",
    "lora_B.bias": "lora_bias",
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_embedding_A": "LoRA on an embedding",
    "lora_embedding_B": "LoRA on an embedding",
}


def layer_keys(layer: str) -> tuple[str, str]:
    """The keys of A and B of a layer."""
    prefix = f"{_PREFIX}{layer}." if layer else _PREFIX
    return prefix + "lora_A.weight", prefix + "lora_B.weight"


def plain_key(name: str) -> str:
    """The key of a tensor of a module to save."""
    return _PREFIX + name


def split(key: str, keys: Container[str], to_save: Sequence[str]) -> tuple[str, str]:
    """Split a key into (layer, "A" or "B"), or into (name, "") if its tensor belongs to a module to save."""
    if not key.startswith(_PREFIX):
        check_layout([key])
        raise AdapterError(f"tensors must be named {_PREFIX}<name>, as PEFT names them; got {key!r}")
    name = key.removeprefix(_PREFIX)
    # Matching a name, and finding names near it, takes longer the longer it is.
    if len(name) > _LONGEST_NAME:
        raise AdapterError(
            f"names of tensors must have at most {_LONGEST_NAME} letters; got {name[:40]!r}..."
        )
    found = next((letter for letter in ("A", "B") if f".{name}".endswith(f".lora_{letter}.weight")), "")
    layer = f".{name}".removesuffix(f".lora_{found}.weight").lstrip(".")
    # A module to save holds no LoRA layer. It may itself be called lora_A, but then there is no lora_B.
    is_pair = bool(found) and all(other in keys for other in layer_keys(layer))
    if _is_inside(layer if is_pair else name.rpartition(".")[0], to_save):
        return name, ""
    for ending, what in _OTHERS.items():
        if name == ending or name.endswith("." + ending):
            raise AdapterError(f"{key!r} is {what}, which is not supported")
    if found:
        return layer, found
    check_layout([key])
    return name, ""


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is, or lies inside, one of these modules, which are given by their name endings."""
    return any(f".{module}." in f".{name}." for module in modules)
