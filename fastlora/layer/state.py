"""What a layer writes into a state_dict, and reads from one.

    weight, bias, start_A, start_B, adapters.<name>.lora_A, adapters.<name>.lora_B

These are the names of named_parameters and named_buffers, whichever adapter is in use. A and B of "default"
were once called `lora_A` and `lora_B`; that is still read.
"""

from __future__ import annotations

from typing import Any

from fastlora.layer.adapter import DEFAULT, SLOTS
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.merging import MergeableLinear


def saved_name(adapter: str, slot: str) -> str:
    """What A or B ("lora_A", "lora_B") of an adapter is called in its layer's state_dict."""
    return f"adapters.{adapter}.{slot}"


class StoredLinear(MergeableLinear):
    """The part of FusedLoRALinear that is saved and loaded."""

    @exclusive
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A checkpoint always holds W, merged or not: adding the update again on loading would be wrong."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._base_weight is not None:
            destination[prefix + "weight"] = self._base_weight

    @exclusive
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without A and B, the plain layer's, leaves the adapters as they are.

        A merged layer is unmerged first: its weight would not fit what is loaded.
        """
        _name_as_now(state_dict, prefix)
        merged_from = (prefix + "weight", *(prefix + saved_name(str(self.adapter), slot) for slot in SLOTS))
        if any(name in state_dict for name in merged_from):
            self.unmerge()
        if _of_plain_layer(state_dict, prefix):
            # Each then loads what it holds.
            self.adapters.state_dict(destination=state_dict, prefix=prefix + "adapters.", keep_vars=True)
        with commit():
            super()._load_from_state_dict(state_dict, prefix, *args)


def _name_as_now(state_dict: dict[str, Any], prefix: str) -> None:
    """Give A and B of "default" the names they have now, where a state_dict has those of before."""
    for slot in SLOTS:
        now = prefix + saved_name(DEFAULT, slot)
        if prefix + slot in state_dict and now not in state_dict:
            state_dict[now] = state_dict.pop(prefix + slot)


def _of_plain_layer(state_dict: dict[str, Any], prefix: str) -> bool:
    """Whether a state_dict is a plain layer's: W, and nothing of LoRA."""
    ours = (prefix + "lora_", prefix + "adapters.")
    return prefix + "weight" in state_dict and not any(name.startswith(ours) for name in state_dict)
