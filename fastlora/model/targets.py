"""Finds the layers of a model that a LoRAConfig selects, with the rank and alpha of each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from fastlora.arguments import shown
from fastlora.config import LoRAConfig
from fastlora.experts.stacks import stacks_of
from fastlora.formats.registry import format_of
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.fused_lora_embedding import FusedLoRAEmbedding, check_embedding, is_embedding
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.linear_kinds import is_pefts, other_linear_kind
from fastlora.layer.lora_conv import LoRAConv, check_conv, is_conv
from fastlora.layer.quantized import check_packed
from fastlora.layer.replacement import check_plain_conv1d, check_plain_linear
from fastlora.model.all_linear import all_linear
from fastlora.model.experts_targets import Place, find_stacks, stacks_by_name
from fastlora.model.name_matching import listed, matched_modules, numbers_by_pattern
from fastlora.model.wrappers import compiled_modules, module_names


class Target(NamedTuple):
    """A layer to adapt.

    Attributes:
        name: The first name that it is registered under.
        linear: The layer; of experts a `Stack` of their weights, or its LoRA layer.
        r: Rank of its update.
        alpha: Its alpha; None means r.
    """

    name: str
    linear: Any
    r: int
    alpha: float | None


def find_targets(
    model: nn.Module,
    config: LoRAConfig,
    *,
    adapted: Collection[nn.Module] = (),
    trained: Collection[nn.Module] = (),
    heads: Collection[nn.Module] = (),
) -> list[Target]:
    """The layers that `config` selects, in the model's order; the model is not changed.

    A module registered under several names is one target; any of its names can match or exclude it.

    Args:
        model: Where to look.
        config: Which layers.
        adapted: LoRA layers that may be targets too, as they can take one more adapter.
        trained: Modules that are trained in full, so that an update would be pointless, or in some rows.
        heads: Those of `trained` that the config does not name. A target name may match them without error,
            as in PEFT.

    Raises:
        TypeError: If a module that was named is not exactly an nn.Linear, or "all-linear" meets linear maps
            that are not an nn.Linear.
        ValueError: If a pattern matches nothing, nothing is left to adapt, or a module that was named has
            LoRA already or is trained in full.
    """
    names, compiled = module_names(model), compiled_modules(model)
    _check_without_peft(names)
    stacks = stacks_by_name(names)
    named: dict[Place, list[str]] = dict([*names.items(), *stacks.items()])
    excluded = matched_modules("exclude_modules", config.exclude_modules or (), named)
    modules: list[nn.Module] = []
    if config.targets_all_linear:
        modules = all_linear(model, names, excluded, adapted, trained)
    elif config.target_modules:
        matched = matched_modules("target_modules", config.target_modules, names)
        matched = _at_layers(config, matched, names)
        modules = [module for module in names if module in matched - excluded and module not in heads]
        if not modules and matched - excluded:
            raise ValueError(
                "target_modules must name layers besides the model's new head, which is trained in full and "
                f"has {listed(names[module][0] for module in matched - excluded)} (task_type="
                "'FEATURE_EXTRACTION' leaves it to the targets)"
            )
        if not modules:
            raise ValueError(f"exclude_modules={shown(config.exclude_modules)} leaves none of target_modules")
        _check_named(names, modules, adapted, trained)
    for module in modules:
        if module not in adapted:
            check_adaptable(names[module][0], module, compiled)
    chosen = [*modules, *find_stacks(config, names, stacks, excluded, adapted, trained, compiled)]
    ranks = numbers_by_pattern("rank_pattern", config.rank_pattern, chosen, named)
    alphas = numbers_by_pattern("alpha_pattern", config.alpha_pattern, chosen, named)
    return [
        Target(
            name=named[module][0],
            linear=module,
            r=ranks.get(module, config.r),
            alpha=alphas.get(module, config.alpha),
        )
        for module in chosen
    ]


def _at_layers(
    config: LoRAConfig, matched: set[nn.Module], names: Mapping[nn.Module, list[str]]
) -> set[nn.Module]:
    """The matched modules in the layers of `layers_to_transform`, as PEFT finds them; all if it is None."""
    wanted = cast("tuple[int, ...] | None", config.layers_to_transform)
    if wanted is None:
        return matched
    # PEFT's expressions, except that the number may also be the second part of a name ("layers.1.attn").
    patterns = ["[^.]*"] if config.layers_pattern is None else config.layers_pattern
    regexes = [re.compile(rf"(?:^|.*?\.)(?:{each})\.(?P<index>\d+)\.") for each in patterns]
    found: dict[int, set[nn.Module]] = {}
    for module in matched:
        for name in names[module]:
            match = next((match for regex in regexes if (match := regex.match(name))), None)
            if match:
                found.setdefault(int(match["index"]), set()).add(module)
    missing = [index for index in wanted if index not in found]
    if missing:
        raise ValueError(
            f"layers_to_transform must be indices of layers with target_modules; {shown(missing)} has none "
            f"(there are {shown(sorted(found))})"
        )
    return {module for index in wanted for module in found[index]}


def _check_without_peft(names: Mapping[nn.Module, list[str]]) -> None:
    theirs = [own[0] for module, own in names.items() if is_pefts(module)]
    if theirs:
        raise TypeError(
            f"model must have no layers of PEFT to be given LoRA; it has {listed(theirs)} (apply_lora on the "
            "model before get_peft_model, or as merge_and_unload gives it back; accelerate_peft of "
            "fastlora.integrations.peft makes PEFT's own layers fast)"
        )


def _check_named(
    names: Mapping[nn.Module, list[str]],
    chosen: Iterable[nn.Module],
    adapted: Collection[nn.Module],
    trained: Collection[nn.Module],
) -> None:
    taken = [
        names[module][0]
        for module in chosen
        if isinstance(module, (FusedLoRALinear, FusedLoRAEmbedding, LoRAConv)) and module not in adapted
    ]
    if taken:
        raise ValueError(
            f"target_modules must name layers without LoRA; {listed(taken)} has it already (remove_lora "
            "first, or exclude_modules)"
        )
    both = [names[module][0] for module in chosen if module in trained]
    if both:
        raise ValueError(
            "target_modules must not overlap with modules_to_save or trainable_token_indices; both mean "
            f"{listed(both)}"
        )


def check_adaptable(name: str, module: nn.Module, compiled: Collection[nn.Module]) -> None:
    """Raise TypeError unless the module of this name can be replaced by a LoRA layer.

    Args:
        name: The module's, for the message.
        module: The module.
        compiled: `compiled_modules` of the model.
    """
    kind = other_linear_kind(name, module)
    if kind is not None:
        hint = " (name them in target_parameters)" if stacks_of(module) else ""
        raise TypeError(f"target {shown(name)} must be exactly an nn.Linear; it is a {kind}{hint}")
    if is_conv(module):
        check_conv(f"target {shown(name)}", module)
    elif is_embedding(module):
        check_embedding(f"target {shown(name)}", module)
    elif is_conv1d(module):
        check_plain_conv1d(f"target {shown(name)}", module)
    elif format_of(module) is None:
        check_plain_linear(f"target {shown(name)}", module)
    else:
        check_packed(f"target {shown(name)}", module)
    if module in compiled:
        raise TypeError(
            f"target {shown(name)} must be compiled afterwards; torch.compile wrapped this layer already"
        )
