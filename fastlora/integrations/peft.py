"""Gives PEFT's own LoRA models fastlora's fused forward, with one line.

    model = get_peft_model(base, LoraConfig(...))
    print(accelerate_peft(model))

The model stays PEFT's: its parameters, state_dict, files and methods do not change. A layer runs the fused
forward if that computes exactly what PEFT's would, and PEFT's own forward otherwise. `forward_counts` says
how often each ran, and why.

Two things differ. For dropout, PEFT uses an nn.Dropout module; the fused forward draws another mask, of the
same distribution and also reproducible by torch.manual_seed. And the fused forward over experts can be
differentiated once, not twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlora.arguments import check_bool
from fastlora.integrations.peft_classes import FAST, ours, theirs, why_kept
from fastlora.integrations.peft_experts import (
    INNER,
    FastParamWrapper,
    note_inner,
    updates_of,
)
from fastlora.integrations.peft_layer import ADDED, FastLinear, Fused
from fastlora.integrations.peft_package import BaseTunerLayer, ParamWrapper
from fastlora.integrations.peft_register import make_layer as _make_layer  # noqa: F401 (version 0.2's pickles)
from fastlora.integrations.peft_register import register
from fastlora.integrations.peft_rules import operands_of
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.replacement import check_own_forward
from fastlora.model.group_reports import GroupReport
from fastlora.model.groups import group_layers
from fastlora.tables import Part, Shown

__all__ = [
    "FastLinear",
    "FastParamWrapper",
    "SwapReport",
    "accelerate_peft",
    "forward_counts",
    "register",
    "undo",
]


@dataclass(frozen=True)
class SwapReport(Shown):
    """What `accelerate_peft` did to each of PEFT's layers; `str()` of it is a readable text.

    Attributes:
        fused: Layers that were swapped and, in their present state, run the fused forward.
        stock: Layers that were swapped but, in their present state, run PEFT's own forward, and why.
        kept: Layers that were not swapped, and why.
        groups: Which layers are computed together, where that was asked for.
    """

    fused: tuple[str, ...]
    stock: dict[str, str]
    kept: dict[str, str]
    groups: GroupReport | None = None

    def parts(self) -> Iterator[Part]:
        """The number of fused layers, then every other layer with its reason."""
        fused, layers = len(self.fused), len(self.fused) + len(self.stock) + len(self.kept)
        verb = "takes" if fused == 1 else "take"
        yield f"{fused} of {layers} layers {verb} fastlora's fused forward"
        for what, reasons in (
            ("swapped, but taking PEFT's own forward now", self.stock),
            ("not swapped", self.kept),
        ):
            if reasons:
                yield f"{len(reasons)} {what}:"
                for name, why in reasons.items():
                    yield f"  {name or '(the model)'}: {why}"
        if self.groups is not None:
            yield from self.groups.parts()


@exclusive
def accelerate_peft(model: nn.Module, *, group: bool = False) -> SwapReport:
    """Give PEFT's LoRA layers over plain and packed linear layers and experts the fused forward, in place.

    The class of each layer that is exactly a peft.tuners.lora.Linear over exactly an nn.Linear or a Conv1D
    becomes `FastLinear`, a subclass that overrides only `forward` and the name that it prints; so do PEFT's
    classes for packed layers, and its Linear over one of these: the base layer's type decides (see
    docs/quantized.md). That of each wrapper of experts' weights (`target_parameters`) becomes
    `FastParamWrapper`, if their module takes Transformers'
    hook for experts. Nothing else about the model changes, so it can be trained, saved, copied and pickled as
    before. `undo` reverses it. Layers that PEFT adds later are not included: call it again, or see
    `register`.

    Args:
        model: What get_peft_model or PeftModel.from_pretrained returned, or any module with PEFT's layers.
        group: Whether projections that share x are computed together, as by `fastlora.group_projections`;
            `fastlora.group_counts` and `fastlora.ungroup_projections` take the model too.

    Returns:
        Which layers were swapped, which not, and why. A second call changes nothing and reports the same.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If it has none of PEFT's layers.
    """
    _check_model(model)
    check_bool(group, "group")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    if not layers:
        raise ValueError(
            f"model must have layers of PEFT; this {type(model).__name__} has none (see get_peft_model)"
        )
    kept = {name: why for name, layer in layers.items() if (why := why_kept(layer)) is not None}
    swapped = {name: layer for name, layer in layers.items() if name not in kept}
    groups = None
    with commit() as changing:
        for layer in swapped.values():
            changing.assign(layer, "__class__", ours(type(layer)))
        for layer in swapped.values():
            if isinstance(layer, ParamWrapper):
                note_inner(layer)
        if group:
            linear = {layer: name for name, layer in swapped.items() if isinstance(layer, Fused)}
            groups = group_layers(model, linear, None, changing)
    found = _states(swapped)
    stock = {name: why for name, why in found.items() if isinstance(why, str)}
    return SwapReport(tuple(name for name in swapped if name not in stock), stock, kept, groups)


def _states(swapped: Mapping[str, Any]) -> dict[str, Any]:
    """{name: the operands of a swapped layer, or why it takes PEFT's own forward now}."""
    found: dict[str, Any] = {}
    for name, layer in swapped.items():
        if isinstance(layer, FastParamWrapper):
            # An outer wrapper, which comes before those inside it, decides for them.
            outer = name.removesuffix(".base_layer")
            found[name] = found[outer] if vars(layer).get(INNER) else updates_of(layer)
        else:
            found[name] = operands_of(layer)
    return found


@exclusive
def undo(model: nn.Module) -> None:
    """Turn every fast layer of a model, swapped or made by `register`, back into PEFT's own layer.

    Raises:
        TypeError: If `model` is not an nn.Module, or a layer is of a subclass of a fast one, or something
            keeps a reference to its forward, as accelerate's hooks do
            (accelerate.hooks.remove_hook_from_submodules removes them). The model is then unchanged.
    """
    _check_model(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FAST)}
    for name, layer in layers.items():
        if ours(type(layer)) is None:
            wanted = FastLinear if isinstance(layer, Fused) else FastParamWrapper
            raise TypeError(
                f"layer {name!r} must be exactly a {wanted.__qualname__}; got {type(layer).__name__}"
            )
        check_own_forward(f"layer {name!r}", layer)
    with commit() as changing:
        for layer in layers.values():
            changing.assign(layer, "__class__", theirs(type(layer)))
            for name in (*ADDED, INNER, "forward"):
                changing.drop(vars(layer), name)


def forward_counts(model: nn.Module) -> Counter[str]:
    """The number of eager forwards of fast layers: under "fused", or under why PEFT's own ran.

    Experts count once for each of their parameters that is adapted.

    A forward that activation checkpointing runs again counts again; a compiled one does not count.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    _check_model(model)
    counts: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, FAST):
            counts.update(vars(module).get("forward_counts", ()))
    return counts


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
