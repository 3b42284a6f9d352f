"""A frozen copy of a model that shares W: what preference training compares a model with."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from fastlora.layer.commits import exclusive
from fastlora.layer.sharding import check_not_dtensor
from fastlora.model.biases import trained_by_any
from fastlora.model.find_layers import existing_layers
from fastlora.model.modules_to_save import inside, saved_modules
from fastlora.model.name_matching import listed

_Model = TypeVar("_Model", bound=nn.Module)


@exclusive
def reference_model(model: _Model) -> _Model:
    """The model as it is now, frozen, for a trainer's `ref_model`: a copy of what is trained, beside its W.

    Without one, TRL's DPO and KTO load the base from its checkpoint once more and compare with that, whatever
    the updates were. Copied are the adapters, modules to save, biases and other parameters that are trained,
    and buffers; all else is the model's own. For the base as the reference, switch the copy's updates off
    (`set_lora_enabled(reference, False)`).

    Args:
        model: A model with LoRA layers, unmerged; not wrapped by DDP or FSDP.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError: If there is no LoRA layer, or a layer is merged, whose W would change with `unmerge_lora`.
        TypeError: If a W is a DTensor, which its library gathers and frees for the model alone.
    """
    layers = existing_layers(model)
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise ValueError(f"layers must be unmerged to share W; merged: {listed(merged)} (unmerge_lora)")
    for name, layer in layers.items():
        check_not_dtensor(layer.weight, f"weight of layer {name!r}")
    trained = [*inside(layer.adapters for layer in layers.values())]
    trained += inside(module for _, module in saved_modules(model))
    own = {id(each) for module in trained for each in module._parameters.values()}
    own |= {id(b) for b in trained_by_any(model).values()}
    shared = {id(p): p for p in model.parameters() if id(p) not in own and not p.requires_grad}
    reference = copy.deepcopy(model, dict(shared))
    for parameter in reference.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return reference.eval()
