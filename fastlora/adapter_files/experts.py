"""The layers of experts in PEFT's files: their names there, and how A and B of all experts are laid out.

PEFT nests a wrapper for each parameter of a module of experts, the first parameter's inside the others':

    <experts>.base_layer.lora_A.weight    of gate_up_proj
    <experts>.lora_A.weight               of down_proj, the last parameter that is adapted

    lora_A  [E * r, K]   rows of one expert beside each other: the expert is slowest
    lora_B  [N, r * E]   columns of one rank beside each other: the expert is fastest

Here a layer of experts has the name of its parameter, and A [E, r, K] and B [E, N, r].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from fastlora.adapter_files.contents import Contents
from fastlora.adapter_files.errors import AdapterError
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.experts.stacks import Stack, stacks_of
from fastlora.layer.base_weights import like_weight
from fastlora.model.experts_targets import Place, stacks_by_name
from fastlora.model.wrappers import module_names, modules_by_name

_INNER: Final = ".base_layer"


def names_in_files(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """{name of a layer: its name in a file} for the layers of one adapter, in the model's order."""
    last: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if isinstance(layer, FusedLoRAExperts):
            last.setdefault(_module_of(name, layer.parameter), []).append(name)
    found = {name: name for name in layers}
    for module, own in last.items():
        for depth, name in enumerate(reversed(own)):
            found[name] = f"{module}{_INNER * depth}".lstrip(".")
    return found


def name_layers(model: nn.Module, contents: Contents) -> None:
    """Give the layers of experts in a file the names of this model's parameters.

    Raises:
        AdapterError: If the config does not name the parameters of a layer of experts, or not as many as the
            file has; or it names one that is no stack of experts in this model.
    """
    modules, wanted = modules_by_name(model), contents.config.target_parameters
    stems: dict[str, list[str]] = {}
    for name in contents.names:
        stem = f".{name}"
        while stem.endswith(_INNER):
            stem = stem.removesuffix(_INNER)
        stems.setdefault(stem.lstrip("."), []).append(name)
    names, experts = {name: name for name in (*contents.names, *contents.beside)}, {}
    for stem, own in stems.items():
        stacks = stacks_of(modules[stem]) if stem in modules else []
        if not stacks:
            continue
        for name, stack in zip(
            sorted(own, key=len, reverse=True), _named(stem, stacks, wanted, own), strict=True
        ):
            names[name] = f"{stem}.{stack.parameter}".lstrip(".")
            experts[names[name]] = stack.weight.shape[0]
    if wanted and not experts:
        raise AdapterError(
            f"target_parameters must name experts' weights of the model; {', '.join(wanted[:4])} is none "
            "(LoRA on other bare parameters: use it with PEFT)"
        )
    if experts:
        contents.name_experts(names, experts)


def known_names(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of every module, under the names that layers of its experts have in files too."""
    known = modules_by_name(model)
    inner = {
        f"{name}{_INNER * depth}".lstrip("."): module
        for name, module in known.items()
        for depth in range(1, len(stacks_of(module)))
    }
    return {**inner, **known}


def places_by_name(model: nn.Module) -> dict[str, Place]:
    """{name: module or stack} of what an adapter's layers may be for; a stack has its parameter's name."""
    names = module_names(model)
    stacks = {name: stack for stack, own in stacks_by_name(names).items() for name in own}
    return {**stacks, **modules_by_name(model)}


def shape_of(place: Place) -> list[int]:
    """[N, K] of a linear layer, [E, N, K] of a stack of experts or its layer."""
    if isinstance(place, (Stack, FusedLoRAExperts)):
        return list((place.stack if isinstance(place, FusedLoRAExperts) else place).weight.shape)
    return list(like_weight(place).shape)


def _named(stem: str, stacks: Sequence[Stack], wanted: Collection[str], own: Sequence[str]) -> list[Stack]:
    """The stacks that a config names, in the order in which PEFT wraps them."""
    found = [
        stack for stack in stacks if any(f".{stem}.{stack.parameter}".endswith(f".{name}") for name in wanted)
    ]
    if len(found) != len(own):
        raise AdapterError(
            f"target_parameters must name the {len(own)} parameters of {stem!r} that the file has A and B "
            f"for; it names {len(found)}"
        )
    return found


def to_file(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A [E, r, K] and B [E, N, r] -> [E * r, K] and [N, r * E]; other tensors as they are."""
    if A.dim() != 3:
        return A, B
    E, r, K = A.shape
    return A.reshape(E * r, K), B.permute(1, 2, 0).reshape(B.shape[1], r * E)


def from_file(A: Tensor, B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """[E * r, K] and [N, r * E] -> A [E, r, K] and B [E, N, r], contiguous; for 0 experts as they are."""
    if not experts:
        return A, B
    A = A.reshape(experts, -1, A.shape[1])
    return A, B.reshape(B.shape[0], -1, experts).permute(2, 0, 1).contiguous()


def _module_of(name: str, parameter: str) -> str:
    return f".{name}".removesuffix(f".{parameter}").lstrip(".")
