"""Finds the stacks of experts' weights that a LoRAConfig selects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

from torch import nn

from fastlora.arguments import shown
from fastlora.config import LoRAConfig
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.experts.stacks import CHILD, Stack, check_stack, stacks_of
from fastlora.model.name_matching import listed, matched_modules

# What LoRA goes to: a linear layer, a LoRA layer that takes a further adapter, a stack without LoRA.
Place: TypeAlias = nn.Module | Stack


def stacks_by_name(names: Mapping[nn.Module, list[str]]) -> dict[Stack, list[str]]:
    """Every stack of experts' weights without LoRA, with the names of the parameter."""
    return {
        stack: [f"{name}.{stack.parameter}".lstrip(".") for name in own]
        for module, own in names.items()
        for stack in stacks_of(module)
        if stack.parameter not in getattr(module._modules.get(CHILD), "_modules", ())
    }


def reached_by_all(names: Mapping[nn.Module, list[str]]) -> set[nn.Module]:
    """The modules of experts all of whose 3-D parameters are stacks, with or without LoRA."""
    return {
        module
        for module in names
        if (found := stacks_of(module))
        and len(found) == sum(p is not None and p.dim() == 3 for p in module._parameters.values())
    }


def find_stacks(
    config: LoRAConfig,
    names: Mapping[nn.Module, list[str]],
    stacks: Mapping[Stack, list[str]],
    excluded: Collection[Place],
    adapted: Collection[nn.Module],
    trained: Collection[nn.Module],
    compiled: Collection[nn.Module],
) -> list[Place]:
    """The stacks that `config` selects, and the layers of those that have LoRA, in the model's order.

    "all-linear" means every stack but those of excluded modules and of modules trained in full.

    Args:
        config: Which stacks.
        names: The model's modules and their names.
        stacks: `stacks_by_name` of them.
        excluded: Modules, stacks and layers of stacks to leave out.
        adapted: LoRA layers that can take one more adapter.
        trained: Modules that are trained in full.
        compiled: Modules that torch.compile wraps directly.

    Raises:
        TypeError: If a name is no experts' weight in a 3-D parameter, or LoRA cannot go beside it.
        ValueError: If a name matches nothing or only what is excluded, or a stack has LoRA already or is
            trained in full.
    """
    places: dict[Place, list[str]] = {}
    places.update((module, own) for module, own in names.items() if isinstance(module, FusedLoRAExperts))
    places.update(stacks.items())
    left = [each for each in places if each not in excluded and _experts_of(each) not in excluded]
    chosen: list[Place] = []
    if config.targets_all_linear:
        chosen = [
            each
            for each in left
            if _experts_of(each) not in trained and (isinstance(each, Stack) or each in adapted)
        ]
    if config.target_parameters is not None:
        matched = _matched(config.target_parameters, names, places)
        named = [each for each in left if each in matched and each not in chosen]
        if not named and not chosen:
            raise ValueError(
                f"exclude_modules={shown(config.exclude_modules)} leaves none of target_parameters"
            )
        _check_named({each: places[each] for each in named}, adapted, trained)
        chosen += named
    for each in chosen:
        if isinstance(each, Stack):
            check_stack(f"target {shown(places[each][0])}", each)
            if each.experts in compiled:
                raise TypeError(
                    f"target {shown(places[each][0])} must be compiled afterwards; torch.compile wrapped its "
                    "module already"
                )
    return chosen


def _experts_of(place: Place) -> nn.Module:
    """The module of experts that a stack or its layer belongs to."""
    stack = place.stack if isinstance(place, FusedLoRAExperts) else place
    assert isinstance(stack, Stack)
    return stack.experts


def _matched(
    wanted: Collection[str], names: Mapping[nn.Module, list[str]], places: Mapping[Place, list[str]]
) -> set[Place]:
    for name in wanted:
        owners = [
            f"{shown(f'{own[0]}.{kind}'.lstrip('.'))} {list(parameter.shape)} of a {type(module).__name__}"
            for module, own in names.items()
            for kind, parameter in module._parameters.items()
            if parameter is not None and _ends_with(f"{own[0]}.{kind}".lstrip("."), name)
        ]
        if owners and not any(_ends_with(each, name) for own in places.values() for each in own):
            raise TypeError(
                "target_parameters must name experts' weights, 3-D parameters of a module that takes "
                f"Transformers' hook for experts; {shown(name)} is {owners[0]}"
            )
    found: set[Place] = matched_modules("target_parameters", wanted, places)
    return found


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _check_named(
    named: Mapping[Place, list[str]],
    adapted: Collection[nn.Module],
    trained: Collection[nn.Module],
) -> None:
    taken = [own[0] for each, own in named.items() if not isinstance(each, Stack) and each not in adapted]
    if taken:
        raise ValueError(
            f"target_parameters must name experts without LoRA; {listed(taken)} has it already (remove_lora "
            "first, or exclude_modules)"
        )
    both = [own[0] for each, own in named.items() if _experts_of(each) in trained]
    if both:
        raise ValueError(f"target_parameters and modules_to_save must not overlap; both mean {listed(both)}")
