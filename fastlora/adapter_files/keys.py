"""The names of the tensors in an adapter's file.

base_model.model.<layer>.lora_A.weight [r, K], base_model.model.<layer>.lora_B.weight [N, r]
base_model.model.<layer>.lora_magnitude_vector [N], of DoRA
base_model.model.<layer>.lora_B.bias [N], of lora_bias
base_model.model.<layer>.lora_embedding_A [r, K], base_model.model.<layer>.lora_embedding_B [N, r]
base_model.model.<layer>.base_layer.bias, base_model.model.<other module>.bias, biases that are trained
base_model.model.<module to save>.<name in its state_dict>
base_model.model.<embedding or output layer>.token_adapter.trainable_tokens_delta [n, K], rows of tokens
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.foreign import check_layout

ROWS: Final = ".token_adapter.trainable_tokens_delta"
_PREFIX: Final = "base_model.model."
_LONGEST_NAME: Final = 256
# {letter: ending of the names of its tensors}
_ENDINGS: Final = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "m": "lora_magnitude_vector",
    "b": "lora_B.bias",
    "embedding A": "lora_embedding_A",
    "embedding B": "lora_embedding_B",
}
# Name endings of tensors that are not plain LoRA on linear layers, and what they are.
_OTHERS: Final = {
    "lora_A.bias": "a bias of A",
    "lora_magnitude_vector.weight": "DoRA in another layout",
}


def layer_keys(layer: str, *, embedding: bool = False) -> tuple[str, str]:
    """The keys of A and B of a layer."""
    prefix = f"{_PREFIX}{layer}." if layer else _PREFIX
    kind = "embedding " if embedding else ""
    return prefix + _ENDINGS[f"{kind}A"], prefix + _ENDINGS[f"{kind}B"]


def third_key(layer: str, letter: str) -> str:
    """The key of DoRA's m ("m") or of B's bias ("b") of a layer."""
    return f"{_PREFIX}{layer}.{_ENDINGS[letter]}" if layer else _PREFIX + _ENDINGS[letter]


def bias_key(module: str, *, has_lora: bool) -> str:
    """The key of the base model's bias in a module."""
    inner = "base_layer.bias" if has_lora else "bias"
    return f"{_PREFIX}{module}.{inner}" if module else _PREFIX + inner


def plain_key(name: str) -> str:
    """The key of a tensor of a module to save."""
    return _PREFIX + name


def split(key: str, keys: Container[str], to_save: Sequence[str]) -> tuple[str, str]:
    """Split a key into (layer, one of _ENDINGS), or into (name, "") if it belongs to a module to save.

    Raises:
        AdapterError: If it is not named as PEFT names tensors, or is of a kind that is not supported.
    """
    if not key.startswith(_PREFIX):
        check_layout([key])
        raise AdapterError(f"tensors must be named {_PREFIX}<name>, as PEFT names them; got {key!r}")
    name = key.removeprefix(_PREFIX)
    # Matching a name, and finding names near it, takes longer the longer it is.
    if len(name) > _LONGEST_NAME:
        raise AdapterError(
            f"names of tensors must have at most {_LONGEST_NAME} letters; got {name[:40]!r}..."
        )
    found = next((letter for letter, ending in _ENDINGS.items() if f".{name}".endswith(f".{ending}")), "")
    layer = f".{name}".removesuffix(f".{_ENDINGS.get(found, '')}").lstrip(".")
    # A module to save holds no LoRA layer. It may itself be called lora_A, but then there is no lora_B.
    pair = layer_keys(layer, embedding=found.startswith("embedding"))
    is_pair = bool(found) and all(other in keys for other in pair)
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
