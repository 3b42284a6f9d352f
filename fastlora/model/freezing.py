"""Which parameters of a model with LoRA are trained."""

from __future__ import annotations

from torch import nn

from fastlora.layer.commits import commit, exclusive
from fastlora.layer.sharding import reshard
from fastlora.layer.writable import check_trainable
from fastlora.model.biases import biases_in_use, train_biases
from fastlora.model.ddp import note_change
from fastlora.model.find_layers import check_model, lora_layers
from fastlora.model.modules_to_save import can_train, mark, saved_modules
from fastlora.model.versions import idle_versions


@exclusive
def freeze(model: nn.Module) -> None:
    """Make A and B of the adapter in use, its biases and the modules to save trainable; freeze all else.

    Frozen parameters lose their gradients. A submodule without LoRA layers is frozen entirely:
    `freeze(model.lm_head)` reverses `unfreeze(model.lm_head)`.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If an update was made in torch.inference_mode, and so cannot be trained.
    """
    check_model(model)
    layers = dict(lora_layers(model))
    reshard(model)
    saved = [module for _, module in saved_modules(model)]
    updates = {
        f"{slot} of layer {name!r}": parameter
        for name, layer in layers.items()
        if layer.active is not None
        for slot, parameter in layer.active.named_parameters()
    }
    for what, tensor in updates.items():
        check_trainable(tensor, what)
    with commit() as changing:
        note_change(model, changing)
        for parameter in model.parameters():
            changing.freeze(parameter)
        for tensor in updates.values():
            changing.assign(tensor, "requires_grad", True)
        train_biases(model, changing)
        mark(saved, changing)


@exclusive
def unfreeze(model: nn.Module) -> None:
    """Make every parameter trainable except W and b of LoRA layers and adapters that are not in use.

    A b that the adapter in use trains is trainable.

    A weight tied to such a W (an embedding's, say) is the same parameter, so it stays frozen.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If a parameter was made in torch.inference_mode, and so cannot be trained.
    """
    layers = dict(lora_layers(model))
    reshard(model)
    # All that a layer holds, as W may be computed from others, by a parametrization.
    own = ((layer.weight, layer.bias, *layer.parameters()) for layer in layers.values())
    frozen = {id(each) for tensors in own for each in tensors}
    frozen -= {id(each) for layer in layers.values() if layer.active for each in layer.active.parameters()}
    frozen -= {id(b) for b in biases_in_use(model).values()}
    frozen |= {id(tensor) for tensor in idle_versions(model)}
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in frozen and can_train(parameter)
    }
    for name, parameter in chosen.items():
        check_trainable(parameter, name)
    with commit() as changing:
        note_change(model, changing)
        for parameter in chosen.values():
            changing.assign(parameter, "requires_grad", True)
