"""What target_modules="all-linear" means in a model, and what it leaves out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from fastlora.formats.registry import format_of
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.linear_kinds import is_left_out_by_all, other_linear_kind
from fastlora.model.experts_targets import reached_by_all
from fastlora.model.name_matching import listed
from fastlora.warning import warn


def all_linear(
    model: nn.Module,
    names: Mapping[nn.Module, list[str]],
    excluded: Collection[nn.Module],
    adapted: Collection[nn.Module],
    trained: Collection[nn.Module],
) -> list[nn.Module]:
    """Each module that is exactly an nn.Linear, a Conv1D or a packed one, but no output head nor excluded.

    Linear maps that are not an nn.Linear are an error unless they are excluded, because "all-linear" would
    not be true; but for experts in 3-D parameters that `find_stacks` finds. Subclasses are left out, as their
    weight may be used without calling them: nn.MultiheadAttention does so with its out_proj, and LoRA there
    would be silently ignored. A warning names the subclasses that are not torch's.

    Raises:
        ValueError: If there is such a map, or no module is left.
    """
    heads = output_heads(model)
    _check_all_reached(names, {*excluded, *trained, *heads, *reached_by_all(names)})
    chosen: list[nn.Module] = []
    left_out: dict[str, list[nn.Module]] = {}
    for module in names:
        if not isinstance(module, nn.Linear) and not _is_known(module):
            continue
        if module in excluded:
            left_out.setdefault("excluded", []).append(module)
        elif module in trained:
            left_out.setdefault("trained in full", []).append(module)
        elif module in adapted:
            chosen.append(module)
        elif isinstance(module, FusedLoRALinear):
            left_out.setdefault("with LoRA already", []).append(module)
        elif not _is_known(module):
            left_out.setdefault("of a subclass", []).append(module)
        elif module in heads:
            left_out.setdefault("output head", []).append(module)
        else:
            chosen.append(module)
    if not chosen:
        kinds = (f"{why}: {listed(names[each][0] for each in those)}" for why, those in left_out.items())
        reasons = "; ".join(kinds)
        raise ValueError(
            "target_modules='all-linear' must find modules that are exactly nn.Linear; it found none"
            + (f" (left out: {reasons})" if reasons else "")
        )
    subclasses = (each for each in left_out.get("of a subclass", ()) if each not in heads)
    strangers = [names[each][0] for each in subclasses if not is_left_out_by_all(each)]
    if strangers:
        warn(
            f"target_modules='all-linear' leaves out {listed(strangers)}, of a subclass of nn.Linear that "
            "may compute something else (name these in exclude_modules if that is meant)",
        )
    return chosen


def _is_known(module: nn.Module) -> bool:
    """Whether a module is a linear layer that LoRA goes on, subclasses apart."""
    return type(module) is nn.Linear or is_conv1d(module) or format_of(module) is not None


def _check_all_reached(names: Mapping[nn.Module, list[str]], excluded: set[nn.Module]) -> None:
    missed: dict[str, list[str]] = {}
    for module, own in names.items():
        kind = other_linear_kind(own[0], module)
        if kind is not None and module not in excluded:
            missed.setdefault(kind, []).append(own[0])
    if missed:
        kinds = "; ".join(f"{kind}: {listed(own)}" for kind, own in missed.items())
        raise TypeError(
            "target_modules='all-linear' must reach every linear map, and LoRA goes to nn.Linear, Conv1D and "
            f"known packed layers alone; this model has {kinds} (name the layers to adapt, or leave these "
            "out by exclude_modules)"
        )


def output_heads(model: nn.Module) -> set[nn.Module]:
    """The output embeddings of Transformers models, which PEFT's "all-linear" leaves out too."""
    getters = (getattr(module, "get_output_embeddings", None) for module in model.modules())
    return {head for getter in getters if callable(getter) and isinstance(head := getter(), nn.Module)}
