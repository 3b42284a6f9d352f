"""Modules that are trained in full and saved together with the updates: PEFT's `modules_to_save`.

Such a module is trained in place; an attribute marks it. Each further adapter has a version of its own (see
`versions`). Unlike in PEFT, no untrained copy is kept: a module stays as trained when the updates are
switched off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from torch import nn

from fastlora.layer.commits import Commit
from fastlora.layer.writable import check_trainable as check_gradient
from fastlora.model.find_layers import LORA_LAYERS
from fastlora.model.name_matching import listed, matched_modules
from fastlora.model.versions import drop_versions, idle_versions
from fastlora.model.wrappers import module_names

_MARK: Final = "_trained_beside_lora"
TASK: Final = "_lora_task_type"  # on the model itself: see tasks.py


def find_modules_to_save(model: nn.Module, names: Sequence[str] | None) -> list[nn.Module]:
    """The modules that these names match; the model is not changed.

    Raises:
        ValueError: If a name matches no module; or a module has no parameters, holds LoRA layers, or shares a
            parameter with the rest of the model, which would be trained with it.
    """
    known = module_names(model)
    chosen = matched_modules("modules_to_save", names or (), known)
    for module in chosen:
        check_trainable(model, known[module][0], module)
    return [module for module in known if module in chosen]


def check_trainable(model: nn.Module, name: str, module: nn.Module) -> None:
    """Raise ValueError unless the module can be trained and saved separately from the rest of the model."""
    inside = {id(inner) for inner in module.modules()}
    own = {id(parameter) for parameter in module.parameters()}
    if not own:
        raise ValueError(f"modules_to_save must name modules with parameters; {name!r} has none")
    for inner in module.modules():
        if isinstance(inner, LORA_LAYERS):
            raise ValueError(f"modules_to_save must name modules without LoRA layers; {name!r} has some")
    sharing = [
        f"{other}.{kind}".lstrip(".")
        for outer, (other, *_) in module_names(model).items()
        if id(outer) not in inside
        for kind, parameter in outer._parameters.items()
        if id(parameter) in own
    ]
    if sharing:
        raise ValueError(
            f"modules_to_save must name modules with weights of their own; {name!r} shares one with "
            f"{listed(sharing)}, which would be trained too (to train it apart, as PEFT does, give it a "
            "copy: module.weight = nn.Parameter(module.weight.detach().clone()))"
        )
    for kind, parameter in module.named_parameters():
        if can_train(parameter):
            check_gradient(parameter, f"{name}.{kind}".lstrip("."))


def mark(modules: Sequence[nn.Module], changing: Commit) -> None:
    """Mark modules to be trained and saved with the updates; floating-point parameters become trainable."""
    for module in modules:
        changing.put(vars(module), _MARK, True)
        idle = {id(parameter) for parameter in idle_versions(module)}
        for parameter in module.parameters():
            if id(parameter) in idle:
                continue
            changing.assign(parameter, "requires_grad", can_train(parameter))


def mark_for_further(modules: Iterable[nn.Module], changing: Commit) -> None:
    """Mark modules that a further adapter trains; those in use stay frozen."""
    for module in modules:
        changing.put(vars(module), _MARK, True)


def can_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter's dtype allows a gradient."""
    return parameter.is_floating_point() or parameter.is_complex()


def inside(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """These modules and all their submodules."""
    return {inner for module in modules for inner in module.modules()}


def unmark(model: nn.Module, changing: Commit) -> None:
    """Remove all marks; the parameters do not change."""
    drop_versions(model, changing)
    for module in model.modules():
        changing.drop(vars(module), _MARK)
        changing.drop(vars(module), TASK)


def saved_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of each marked module, each once."""
    return ((own[0], module) for module, own in module_names(model).items() if _MARK in vars(module))
