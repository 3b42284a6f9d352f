"""Modules that are trained in full: each is written to the file, or an error names it."""

from __future__ import annotations

from torch import nn

from fastlora.model.biases import trained_by_any
from fastlora.model.find_layers import lora_layers
from fastlora.model.modules_to_save import check_trainable, saved_modules
from fastlora.model.name_matching import listed
from fastlora.model.wrappers import module_names

_NO_FORWARD = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def modules_in_full(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} to write with the updates: modules to save, and all others that are trained.

    Biases that an adapter trains do not count. A parameter that the caller made trainable is written as in
    PEFT: with the whole module that holds it.

    Raises:
        ValueError: If that is not possible, because the parameter belongs to a LoRA layer (W or b) or to a
            module around one, or is shared with another module.
    """
    found = dict(saved_modules(model))
    inside = {id(inner) for module in found.values() for inner in module.modules()}
    layers = {id(inner) for _, layer in lora_layers(model) for inner in layer.modules()}
    biases = {id(b) for b in trained_by_any(model).values()}
    refused: list[str] = []
    for module, (name, *_) in module_names(model).items():
        trained = [
            f"{name}.{kind}".lstrip(".")
            for kind, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and id(parameter) not in biases
        ]
        if not trained or id(module) in inside:
            continue
        stands_alone = bool(name) and id(module) not in layers and not isinstance(module, _NO_FORWARD)
        if not stands_alone or not _can_be_written(model, name, module):
            refused += trained
        else:
            found[name] = module
            inside |= {id(inner) for inner in module.modules()}
    if refused:
        raise ValueError(
            f"parameters that take gradients must fit PEFT's format; {listed(refused)} cannot be written "
            "beside the updates, as they belong to a LoRA layer, lie beside one in a module, or are shared "
            "(keep them by torch.save(model.state_dict(), path), or call freeze(model) to leave them out)"
        )
    return _outermost(found)


def _can_be_written(model: nn.Module, name: str, module: nn.Module) -> bool:
    try:
        check_trainable(model, name, module)
    except ValueError:
        return False
    return True


def _outermost(found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Without the modules that lie inside others, as they are written with those."""
    inner = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return {name: module for name, module in found.items() if id(module) not in inner}
