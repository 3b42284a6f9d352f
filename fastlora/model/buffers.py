"""Detects persistent buffers that training changed, such as a BatchNorm's running means.

Adapter files do not hold the buffers of frozen modules. So a sample of their initial values is noted, and a
save warns of buffers that have changed since. The sample is kept as text, which survives copies, pickling and
moves to other devices and dtypes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import torch
from torch import Tensor, nn

from fastlora.layer.commits import Commit
from fastlora.layer.sharding import local
from fastlora.model.find_layers import LORA_LAYERS
from fastlora.model.name_matching import listed
from fastlora.model.wrappers import module_names
from fastlora.warning import warn

_NOTE: Final = "_buffers_before_lora"
_SAMPLE: Final = 64
_COUNTER: Final = "num_batches_tracked"  # not compared: it changes with the means, or else has no effect


def note(model: nn.Module, changing: Commit) -> None:
    """Note a sample of each buffer that has none noted yet."""
    for module in model.modules():
        found = {kind: values for kind, buffer in _buffers(module) if (values := _sample(buffer)) is not None}
        if found and _NOTE not in vars(module):
            changing.put(vars(module), _NOTE, found)


def forget(model: nn.Module, changing: Commit) -> None:
    """Delete all notes in a model."""
    for module in model.modules():
        changing.drop(vars(module), _NOTE)


def warn_of_moved(model: nn.Module, written: Collection[nn.Module]) -> None:
    """Warn of buffers that differ from what was noted, except those of modules that are written."""
    moved = [
        f"{name}.{kind}".lstrip(".")
        for module, (name, *_) in module_names(model).items()
        if module not in written and (noted := vars(module).get(_NOTE))
        for kind, buffer in _buffers(module)
        if kind in noted and _differs(buffer, noted[kind])
    ]
    if moved:
        warn(
            f"buffers of frozen modules changed since these were given LoRA, and are in no adapter: "
            f"{listed(moved)}. Whoever loads the adapter has the base model's: name their modules in "
            "LoRAConfig.modules_to_save, keep these in eval() while training, or save model.state_dict()",
        )


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, LORA_LAYERS):
        return
    for kind, buffer in module._buffers.items():
        if buffer is not None and kind not in module._non_persistent_buffers_set and kind != _COUNTER:
            yield kind, buffer


def _differs(buffer: Tensor, noted: list[float]) -> bool:
    """Whether a buffer differs from the noted values, rounded to its dtype."""
    values = _sample(buffer)
    if values is None or len(values) != len(noted):
        return values is not None
    now, then = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (values, noted))
    if buffer.is_floating_point():
        then = then.to(buffer.dtype).double()
    return not torch.allclose(now, then, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def _sample(buffer: Tensor) -> list[float] | None:
    """Up to 64 of a buffer's numbers, evenly spaced; None if its values cannot be read, as on "meta"."""
    try:
        flat = local(buffer).reshape(-1)
        some = flat[:: max(1, -(-flat.numel() // _SAMPLE))]
        some = torch.view_as_real(some).reshape(-1) if some.is_complex() else some
        values: list[float] = some.double().tolist()
        return values
    except Exception:  # fake, lazy or quantized tensors raise various errors; a note may never fail a call
        return None
