"""Module names without the parts that wrappers add.

torch.compile, activation checkpointing, FSDP, DistributedDataParallel, DataParallel and AveragedModel each
register the wrapped model as a child, "module" or "_orig_mod", say. Names with such parts would not fit in
adapter files, nor match patterns that were written for the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import nn

# Child names that only wrappers use: torch.compile, activation checkpointing, FSDP.
_INNER_NAMES: Final = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))

# Wrapper classes whose child is called `module`, a name that models use as well.
_HOLDERS: Final = frozenset(("DistributedDataParallel", "DataParallel", "AveragedModel", "DeepSpeedEngine"))
_PACKAGES: Final = frozenset(("torch", "deepspeed"))


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module, once for each path to it, with wrappers left out of the names.

    A wrapper and the module in it have the same name; the wrapper comes first. The submodules in which a LoRA
    layer keeps its adapters are left out: they are not modules of the model. The layer of a stack of experts
    has the name of the parameter that it adapts.
    """
    return _walk(model, "")


def module_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module of the model, itself ("") included, with all the names that it is registered under."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in named_modules(model):
        own = names.setdefault(module, [])
        if name not in own:
            own.append(name)
    return names


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} with every name of every module; of a wrapper and the module in it, the latter."""
    return dict(named_modules(model))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside all its wrappers."""
    return modules_by_name(model)[""]


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """The modules that torch.compile wraps directly: it goes on calling them even if they are replaced."""
    inner = (module._modules.get("_orig_mod") for module in model.modules())
    return {module for module in inner if module is not None}


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    holds = _is_holder(module)
    for own, child in module._modules.items():
        if child is None or getattr(type(child), "is_inside_a_layer", False):
            continue
        if getattr(type(child), "stands_for_parameters", False):
            for parameter, layer in child._modules.items():
                if layer is not None:
                    yield f"{name}.{parameter}".lstrip("."), layer
            continue
        inside = own in _INNER_NAMES or (holds and own == "module")
        yield from _walk(child, name if inside else f"{name}.{own}".lstrip("."))


def _is_holder(module: nn.Module) -> bool:
    return any(
        cls.__name__ in _HOLDERS and cls.__module__.partition(".")[0] in _PACKAGES
        for cls in type(module).__mro__
    )
