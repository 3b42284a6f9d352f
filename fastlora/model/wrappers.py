"""Modules that only wrap another one: they leave no trace in the names of what is inside.

torch.compile, activation checkpointing, FSDP, DistributedDataParallel, DataParallel and AveragedModel each
put a model below a child of their own, "module" or "_orig_mod", say. A name with such a part in it means
nothing to whoever reads a file, and nothing to a pattern that was written for the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import nn

# Names that only wrappers give: torch.compile, activation checkpointing, FSDP.
_INNER_NAMES: Final = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))

# Classes that hold the model as `module`, a name that models use as well.
_HOLDERS: Final = frozenset(("DistributedDataParallel", "DataParallel", "AveragedModel", "DeepSpeedEngine"))
_PACKAGES: Final = frozenset(("torch", "deepspeed"))


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module, by every path to it, wrappers' parts left out of the names.

    What a LoRA layer holds its adapters in is left out: no name of the model's, or of a pattern, means it.

    A wrapper and what it wraps have one name; the wrapper comes first.
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
    """Every module of a model by each of its names; of a wrapper and what it wraps, the latter."""
    return dict(named_modules(model))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model behind all wrappers around it."""
    return modules_by_name(model)[""]


def compiled_modules(model: nn.Module) -> set[nn.Module]:
    """The modules that torch.compile wraps itself, which it goes on calling whatever is registered later."""
    inner = (module._modules.get("_orig_mod") for module in model.modules())
    return {module for module in inner if module is not None}


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    holds = _is_holder(module)
    for own, child in module._modules.items():
        if child is None or getattr(type(child), "is_inside_a_layer", False):
            continue
        inside = own in _INNER_NAMES or (holds and own == "module")
        yield from _walk(child, name if inside else f"{name}.{own}".lstrip("."))


def _is_holder(module: nn.Module) -> bool:
    return any(
        cls.__name__ in _HOLDERS and cls.__module__.partition(".")[0] in _PACKAGES
        for cls in type(module).__mro__
    )
