"""A version of each module to save for each adapter: switching adapters switches heads, as in PEFT.

The version in use is the module's own parameters and buffers. The others lie beside them, in a child module
of each module that holds any:

    head.weight, head.adapter_versions.<adapter>.weight

A module gets them with the second adapter. A version starts as a copy of the one in use; one that is put
aside is frozen. Parameters are moved, not copied, so an optimizer keeps those of the adapter that it was made
for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from fastlora.layer.commits import Commit
from fastlora.layer.sharding import check_not_dtensor

CHILD: Final = "adapter_versions"
# They call their children one after another, or are called by their own names.
_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class Version(nn.Module):
    """The parameters and persistent buffers that a module has for an adapter that is not in use.

    Attributes:
        trains: Those of its parameters that are trained once it is in use.
    """

    trains: frozenset[str] = frozenset()


class Versions(nn.ModuleDict):
    """The versions of a module, by adapter, but for the one in use.

    Attributes:
        in_use: The adapter whose version the module itself has.
    """

    # Left out of the model's module names: see wrappers.py.
    is_inside_a_layer = True
    in_use: str


def check_versions(module: nn.Module, name: str) -> None:
    """Raise unless the module called `name` can have a version for each adapter.

    Raises:
        TypeError: If a parameter is a DTensor.
        ValueError: If a container of modules holds parameters of its own, as a parametrization does.
    """
    for owner in _owners(module):
        if isinstance(owner, _CONTAINERS) and CHILD not in owner._modules:
            raise ValueError(
                f"modules_to_save must hold their parameters themselves to have a version for each adapter; "
                f"those of {name!r} lie in a {type(owner).__name__}"
            )
        for parameter in owner.parameters(recurse=False):
            check_not_dtensor(parameter, f"a parameter of module {name!r} of a further adapter")


def add_version(
    module: nn.Module, name: str, others: Collection[str], in_use: str, first: bool, changing: Commit
) -> None:
    """Give a module a version for a new adapter, a copy of the one in use.

    Args:
        module: A module to save.
        name: The new adapter.
        others: The adapters of the model.
        in_use: The one in use.
        first: Whether the new adapter is the first for which the module is trained.
        changing: The commit in progress.
    """
    copies: dict[int, nn.Parameter] = {}
    for owner in _owners(module):
        if CHILD not in owner._modules:
            versions = Versions()
            versions.in_use = in_use
            changing.put(owner._modules, CHILD, versions)
            changing.keep(owner._load_state_dict_pre_hooks)
            owner.register_load_state_dict_pre_hook(_before_load)
        known: Any = owner._modules[CHILD]
        for other in others:
            if other != in_use and other not in known:
                changing.put(known._modules, other, _copied(owner, {}, trained=False if first else None))
        changing.put(known._modules, name, _copied(owner, copies, trained=True if first else None))


def switch_versions(model: nn.Module, name: str, changing: Commit) -> None:
    """Put the versions of an adapter in use."""
    for owner, versions in _holders(model):
        if name not in versions._modules:
            continue
        new: Any = versions._modules[name]
        old = Version()
        old.trains = frozenset(own for own, p in owner.named_parameters(recurse=False) if p.requires_grad)
        for own, parameter in list(owner._parameters.items()):
            old._parameters[own] = parameter
            if parameter is not None:
                changing.freeze(parameter)
        old._buffers.update(_kept_buffers(owner))
        for own, parameter in new._parameters.items():
            changing.put(owner._parameters, own, parameter)
            if own in new.trains:
                changing.assign(parameter, "requires_grad", True)
        for own, buffer in new._buffers.items():
            changing.put(owner._buffers, own, buffer)
        changing.drop(versions._modules, name)
        changing.put(versions._modules, versions.in_use, old)
        changing.put(vars(versions), "in_use", name)


def drop_version(model: nn.Module, name: str, changing: Commit) -> None:
    """Forget the versions of an adapter that is deleted."""
    for _, versions in _holders(model):
        changing.drop(versions._modules, name)


def drop_versions(model: nn.Module, changing: Commit) -> None:
    """Forget all versions but those in use."""
    for owner, _ in _holders(model):
        changing.drop(owner._modules, CHILD)
        for key, hook in [*owner._load_state_dict_pre_hooks.items()]:
            if getattr(hook, "hook", None) is _before_load:
                changing.drop(owner._load_state_dict_pre_hooks, key)


def state_of(module: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The module's state_dict in an adapter's version; the tensors themselves."""
    found: dict[str, Any] = {
        key: value
        for key, value in module.state_dict(keep_vars=True).items()
        if f".{CHILD}." not in f".{key}"
    }
    for name, owner in module.named_modules():
        versions = owner._modules.get(CHILD)
        version = None if versions is None else versions._modules.get(adapter)
        for own, value in {} if version is None else version.state_dict(keep_vars=True).items():
            found[f"{name}.{own}".lstrip(".")] = value
    return found


def place_of(module: nn.Module, key: str, adapter: str) -> str:
    """The key in the module's own state_dict of what `state_of` calls `key`."""
    path, _, own = key.rpartition(".")
    versions = module.get_submodule(path)._modules.get(CHILD)
    if versions is None or adapter not in versions._modules:
        return key
    return f"{path}.{CHILD}.{adapter}.{own}".lstrip(".")


def idle_versions(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of all versions that are not in use."""
    for _, versions in _holders(model):
        yield from versions.parameters()


def versions_in_use(model: nn.Module) -> list[str]:
    """The adapters whose versions of modules to save are in use, each once."""
    return list(dict.fromkeys(versions.in_use for _, versions in _holders(model)))


def _owners(module: nn.Module) -> list[nn.Module]:
    """The module and its submodules that hold parameters or buffers; no versions."""
    inside = {id(part) for _, versions in _holders(module) for part in versions.modules()}
    found = [inner for inner in module.modules() if id(inner) not in inside]
    return [inner for inner in found if inner._parameters or inner._buffers]


def _holders(model: nn.Module) -> Iterator[tuple[nn.Module, Versions]]:
    for owner in list(model.modules()):
        versions = owner._modules.get(CHILD)
        if isinstance(versions, Versions):
            yield owner, versions


def _kept_buffers(owner: nn.Module) -> dict[str, Tensor | None]:
    """The buffers that are saved; what is in no state_dict follows from the module, for all its versions."""
    return {
        own: buffer for own, buffer in owner._buffers.items() if own not in owner._non_persistent_buffers_set
    }


def _copied(owner: nn.Module, copies: dict[int, nn.Parameter], trained: bool | None) -> Version:
    """A copy of a module's tensors, frozen; `trained` says whether it will be, None as the module is now."""
    version = Version()
    trains = set()
    with torch.inference_mode(False):
        for own, parameter in owner._parameters.items():
            if parameter is None:
                version._parameters[own] = None
                continue
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            version._parameters[own] = copies[id(parameter)]
            floating = parameter.is_floating_point() or parameter.is_complex()
            if parameter.requires_grad if trained is None else trained and floating:
                trains.add(own)
        version._buffers.update(
            {own: None if b is None else b.detach().clone() for own, b in _kept_buffers(owner).items()}
        )
    version.trains = frozenset(trains)
    return version


def _before_load(owner: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the versions of a state_dict that was saved while another adapter was in use."""
    versions: Any = owner._modules[CHILD]
    start = f"{prefix}{CHILD}."
    saved = {key[len(start) :].partition(".")[0] for key in state_dict if key.startswith(start)}
    other = {*versions._modules, versions.in_use} - saved
    if len(other) != 1 or versions.in_use not in saved:
        return
    was = next(iter(other))
    for own in (*owner._parameters, *owner._buffers):
        mine, theirs = prefix + own, f"{start}{versions.in_use}.{own}"
        if mine in state_dict and theirs in state_dict:
            state_dict[f"{start}{was}.{own}"] = state_dict[mine]
            state_dict[mine] = state_dict.pop(theirs)
