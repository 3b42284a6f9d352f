"""What is said where another `weight` is put on a LoRA layer.

Mostly that is sound: W of another base, a copy, a tied one. Two ways would lose something without a word.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Final

from torch import nn

from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.shared_weights import memory_of
from fastlora.layer.training_warnings import name_of
from fastlora.warning import warn

_FUSING: Final = "torch.nn.utils.fusion"
_SHARDING: Final = "torch.distributed"
_SETATTR: Final = nn.Module.__module__


def check_new_weight(layer: Any, weight: nn.Parameter | None) -> None:
    """Called before a new `weight` is put on a layer.

    Raises:
        TypeError: If torch fuses the layer with a norm after it, as `fuse_linear_bn_eval` does: the norm
            would scale W, and not the update.

    Warns where the layer is merged, as `unmerge` and the state_dict go on giving the W from before.
    """
    caller = _caller()
    if caller == _FUSING:
        raise TypeError(
            f"a norm can be fused into a plain layer alone; {name_of(layer)} is a LoRA layer, whose update "
            "it would not scale (remove_lora with merge=True first, or layer.to_linear())"
        )
    if layer._buffers.get("_base_weight") is None or weight is None or odd_tensor(weight):
        return
    before = layer._parameters.get("weight")  # none where pruning puts its result back
    if not caller.startswith(_SHARDING) and (before is None or memory_of(weight) != memory_of(before)):
        warn(
            f"weight of {name_of(layer)} is replaced while it is merged: unmerging and the state_dict give "
            "the W from before (unmerge_lora first, or remove_lora with merge=True for plain layers)"
        )


def _caller() -> str:
    """The module whose code puts the weight on the layer."""
    frame: FrameType | None = sys._getframe(3)  # who called register_parameter
    while frame is not None and frame.f_globals.get("__name__") == _SETATTR:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))
