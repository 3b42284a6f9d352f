"""Grouping the projections of a model that share x, such as q, k and v, or gate and up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fastlora.arguments import DTYPES, shown
from fastlora.formats.registry import format_of
from fastlora.layer.base_weights import stored_weight
from fastlora.layer.commits import Commit, commit, exclusive
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.groups import MEMBERSHIP, Group, Membership
from fastlora.model.find_layers import check_model, existing_layers
from fastlora.model.group_names import AUTO, FUSED, check_groups, children, tuples_for
from fastlora.model.group_reports import GroupCounts, GroupReport
from fastlora.model.wrappers import module_names


@exclusive
def group_projections(model: nn.Module, groups: str | Sequence[Sequence[str]] = AUTO) -> GroupReport:
    """Have projections that are given the same x computed together, in one pass each way.

    Of the layers of a group, the first that is called computes the outputs of all; the others take theirs
    when they are called in turn. Modules, parameters, names, hooks, state_dict and files stay as they are. A
    member takes an output only if nothing changed since: the same x, unchanged, the same grad mode, autocast
    and backend, the same parameters and options. Otherwise it computes alone. A group in which that happens
    twice in a row is dissolved, with a warning that names it; `group_counts` tells of all.

    Layers that have a group already keep it.

    Args:
        model: A model with LoRA layers.
        groups: "auto" for the names that Llama, Mistral, Qwen, Gemma, Phi, BERT, T5, ViT, diffusers and their
            like use; or tuples of the names of layers below one parent, such as [("wq", "wk", "wv")]. Where
            only some of a tuple have LoRA, these are grouped.

    Returns:
        What was grouped, and what not and why.

    Raises:
        TypeError: If `groups` is neither.
        ValueError: If there is no LoRA layer, or no module has two layers with LoRA of a given tuple.
    """
    given = check_groups(groups)
    found = existing_layers(model)
    layers = {layer: name for name, layer in found.items() if isinstance(layer, FusedLoRALinear)}
    with commit() as changing:
        return group_layers(model, layers, given, changing)


def group_layers(
    model: nn.Module, layers: Mapping[Any, str], groups: list[tuple[str, ...]] | None, changing: Commit
) -> GroupReport:
    """As `group_projections`, for layers of any class that can be members.

    Args:
        model: The model.
        layers: Its layers with LoRA, and their names.
        groups: The user's tuples; None for "auto".
        changing: The commit in progress.
    """
    alone: dict[str, str] = {}
    used = set()
    for parent, names in module_names(model).items():
        for wanted in tuples_for(names[0], groups):
            found = [child for _, child in children(parent, wanted, layers)]
            if len(found) > 1:
                used.add(wanted)
            members = [child for child in found if not _is_grouped(child)]
            if len(members) < 2:
                alone.update((layers[child], "no other that shares its x has LoRA") for child in members)
                continue
            why = why_not_together(members)
            if why is None:
                put_together(members, [layers[child] for child in members], changing)
            else:
                alone.update((layers[child], why) for child in members)
    unused = [names for names in groups or () if names not in used]
    if unused:
        raise ValueError(
            f"groups must name two layers with LoRA or more below one module; {shown(unused[0])} does not"
        )
    return _report(layers, alone)


def put_together(layers: Sequence[nn.Module], names: Iterable[str], changing: Commit) -> None:
    """Make layers a group."""
    group = Group(tuple(names))
    for place, layer in enumerate(layers):
        group.join(layer, place)
        changing.put(vars(layer), MEMBERSHIP, Membership(group, place))


def why_not_together(layers: Sequence[Any]) -> str | None:
    """Why layers cannot be a group, as far as it is known before a call; None if they can."""
    if any(getattr(layer, "split", None) is not None for layer in layers):
        return "tensor parallel divides them among processes"
    # PEFT's layers have W in a base_layer.
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    formats = [getattr(base, "format", None) or format_of(base) for base in bases]
    weights = [stored_weight(base) for base in bases]
    for weight, format in zip(weights, formats, strict=True):
        if format is None and type(weight) is not nn.Parameter:
            return f"a weight is a {type(weight).__name__}, not a plain parameter"
        if format is None and weight.dtype not in DTYPES:
            return f"a weight is in {weight.dtype}"
    for what, values in (
        ("sizes of x", {base.in_features for base in bases}),
        ("formats of W", {"plain" if format is None else format.name for format in formats}),
        ("dtypes of W", {weight.dtype for weight in weights}),
        ("devices", {weight.device for weight in weights}),
    ):
        if len(values) > 1:
            return f"the projections have different {what}: {', '.join(sorted(map(str, values)))}"
    return None


@exclusive
def ungroup_projections(model: nn.Module) -> None:
    """Have every layer compute alone again.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    check_model(model)
    with commit() as changing:
        for module in model.modules():
            if MEMBERSHIP in vars(module):
                changing.drop(vars(module), MEMBERSHIP)


def group_counts(model: nn.Module) -> GroupCounts:
    """The groups of a model, how often they were computed, and what kept members from it.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    check_model(model)
    memberships = (vars(module).get(MEMBERSHIP) for module in model.modules())
    groups = list(dict.fromkeys(one.group for one in memberships if isinstance(one, Membership)))
    misses: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for group in groups:
        misses.update(group.misses)
        alone.update(group.alone)
    return GroupCounts(
        groups=sum(group.dissolved is None for group in groups),
        rounds=sum(group.rounds for group in groups),
        hits=sum(group.hits for group in groups),
        misses=misses,
        alone=alone,
        dissolved={
            ", ".join(group.names): group.dissolved for group in groups if group.dissolved is not None
        },
    )


def _is_grouped(layer: nn.Module) -> bool:
    member: Membership | None = vars(layer).get(MEMBERSHIP)
    return (
        member is not None and member.group.dissolved is None and member.group.members[member.place] is layer
    )


def _report(layers: Mapping[Any, str], alone: Mapping[str, str]) -> GroupReport:
    groups = dict.fromkeys(vars(layer)[MEMBERSHIP].group for layer in layers if _is_grouped(layer))
    inside = {name for group in groups for name in group.names}
    others = {}
    for name in layers.values():
        if name not in inside:
            last = name.rpartition(".")[2]
            fused = "it holds several projections in one already" if last in FUSED else None
            others[name] = alone.get(name) or fused or "no other layer is known to share its x"
    return GroupReport(tuple(group.names for group in groups), others)
