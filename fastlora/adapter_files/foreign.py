"""Recognizes tensor files in other programs' layouts by their keys; the error says how to convert them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fastlora.adapter_files.errors import AdapterError

_KOHYA: Final = (
    "kohya's layout; convert it with examples/lora_dreambooth/convert_kohya_ss_sd_lora_to_peft.py of PEFT's "
    "repository, or read it with diffusers' load_lora_weights"
)
_DIFFUSERS: Final = (
    "diffusers' layout; read it with a diffusers pipeline's load_lora_weights, or rename its tensors with "
    "diffusers.utils.state_dict_utils.convert_state_dict_to_peft, put 'base_model.model.' in the place of "
    "the component's name, and write adapter_config.json with peft.LoraConfig(...).save_pretrained"
)
_STATE_DICT: Final = (
    "the state_dict() of a PEFT model, where the adapter's name is part of each key; write it with the "
    "model's save_pretrained, or save peft.get_peft_model_state_dict(model) beside its config"
)
_OURS: Final = (
    "a fastlora model's own state_dict(); read it with the model's load_state_dict, and write adapters with "
    "save_pretrained"
)
# "lora_A.default.weight", with PEFT's prefix, or without it as after inject_adapter_in_model.
_WITH_NAME: Final = re.compile(r"(?:^|\.)lora_[AB]\.(?!lora_[AB]\.)[^.]+\.weight$")
_COMPONENTS: Final = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "prior.")
_DIFFUSERS_PARTS: Final = (".lora.down.", ".lora.up.", "_lora.down.", "_lora.up.", ".lora_linear_layer.")


def check_layout(keys: Iterable[str]) -> None:
    """Raise AdapterError if a key is in another program's layout."""
    for key in keys:
        layout = _layout(key)
        if layout:
            raise AdapterError(f"must be in PEFT's layout; {key[:200]!r} is of {layout}")


def _layout(key: str) -> str | None:
    prefixed = key.startswith("base_model.model.")
    if key.endswith((".lora_down.weight", ".lora_up.weight")) or (not prefixed and key.endswith(".alpha")):
        return _KOHYA
    if any(part in key for part in _DIFFUSERS_PARTS):
        return _DIFFUSERS
    if _WITH_NAME.search(key):
        return _STATE_DICT
    if not prefixed and key.startswith(_COMPONENTS) and key.endswith((".lora_A.weight", ".lora_B.weight")):
        return _DIFFUSERS
    if not prefixed and (key in ("lora_A", "lora_B") or key.endswith((".lora_A", ".lora_B"))):
        return _OURS
    return None
