"""A layer's state_dict: saving and loading.

    weight, bias, start_A, start_B, adapters.<name>.lora_A, adapters.<name>.lora_B
    adapters.<name>.lora_magnitude_vector of a DoRA adapter, adapters.<name>.lora_B_bias of one with lora_bias

named_parameters and named_buffers have the same names, whichever adapter is in use. Earlier versions called A
and B of "default" `lora_A` and `lora_B`; such state_dicts still load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastlora.layer.adapter import ALL_SLOTS, DEFAULT, MAGNITUDE, SLOTS
from fastlora.layer.base_weights import left_of, packed_format
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.conv1d import turned
from fastlora.layer.magnitude import is_at_start, norms_of
from fastlora.layer.merging import Mergeable
from fastlora.layer.sharding import is_dtensor


def saved_name(adapter: str, slot: str) -> str:
    """The key in a layer's state_dict of an adapter's A, B or m, called by its name (`slot`)."""
    return f"adapters.{adapter}.{slot}"


class Stored(Mergeable):
    """The part of a LoRA layer that is saved and loaded."""

    @exclusive
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As nn.Module's, but with W as `weight` even if the layer is merged.

        A saved W + s B A would get the update a second time once it is loaded.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._base_weight is not None:
            destination[prefix + "weight"] = self._base_weight

    @exclusive
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As nn.Module's; a plain layer's checkpoint, without A and B, leaves the adapters unchanged.

        A merged layer is unmerged first, as its weight holds the old update.
        """
        _name_as_now(state_dict, prefix)
        slots = (saved_name(str(self.adapter), slot) for slot in ALL_SLOTS)
        merged_from = (prefix + "weight", *(prefix + slot for slot in slots))
        if any(name in state_dict for name in merged_from):
            self.unmerge()
        if _of_plain_layer(state_dict, prefix, self.keeper[1]):
            self._put_updates_in(state_dict, prefix)
        with commit():
            super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def _put_updates_in(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Put the adapters' own values into a plain layer's state_dict, so that each loads what it has.

        What was made of W follows the W that comes: an m that is not trained yet starts as its norms, and
        what `initialize` took out of the old W is taken out of it.
        """
        given, W = state_dict[prefix + self.keeper[1]], self.weight
        put_own_values_in(self.adapters, state_dict, prefix + "adapters.", given)
        plain = (given, W)
        if packed_format(self) is not None or any(each.is_meta or is_dtensor(each) for each in plain):
            return
        if given.shape != W.shape:  # which torch refuses
            return
        given = given.to(W)
        for name in self.adapters:
            adapter = self.adapters[name]
            if adapter.dora and is_at_start(self, adapter):
                m = norms_of(turned(self, given)).to(adapter.lora_magnitude_vector)
                state_dict[prefix + saved_name(name, MAGNITUDE)] = m
        if self.start_A is not None and self.start_B is not None:
            state_dict |= {prefix + slot: getattr(self, slot) for slot in ("start_A", "start_B")}
            state_dict[prefix + "weight"] = left_of(self, given)


def put_own_values_in(
    adapters: nn.Module, state_dict: dict[str, Any], prefix: str, given: torch.Tensor
) -> None:
    """Put the adapters' own values into a state_dict that gives W, so that each adapter loads what it has.

    On "meta" they have none: where the W that comes has values, they are left out, as keys that are missing.
    """
    own: dict[str, Any] = adapters.state_dict(prefix=prefix, keep_vars=True)
    state_dict |= {key: value for key, value in own.items() if given.is_meta or not value.is_meta}


def _name_as_now(state_dict: dict[str, Any], prefix: str) -> None:
    """Rename A and B of "default" in a state_dict of an earlier version to their present names."""
    for slot in SLOTS:
        now = prefix + saved_name(DEFAULT, slot)
        if prefix + slot in state_dict and now not in state_dict:
            state_dict[now] = state_dict.pop(prefix + slot)


def _of_plain_layer(state_dict: dict[str, Any], prefix: str, parameter: str) -> bool:
    """Whether a state_dict is a plain layer's: it has W and no tensor of LoRA."""
    ours = (prefix + "lora_", prefix + "adapters.")
    return prefix + parameter in state_dict and not any(name.startswith(ours) for name in state_dict)
