"""Gives PEFT's own LoRA models fastlora's fused forward, with one line.

    model = get_peft_model(base, LoraConfig(...))
    print(accelerate_peft(model))

The model stays PEFT's: its parameters, state_dict, files and methods do not change. A layer runs the fused
forward if that computes exactly what PEFT's would, and PEFT's own forward otherwise. `forward_counts` says
how often each ran, and why.

Two things differ. For dropout, PEFT uses an nn.Dropout module; the fused forward draws another mask, of the
same distribution and also reproducible by torch.manual_seed. And the fused forward can be differentiated
once, not twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlora.arguments import check_bool
from fastlora.integrations.peft_groups import Grouping
from fastlora.integrations.peft_layer import ADDED, FastLinear
from fastlora.integrations.peft_package import BaseTunerLayer, Linear, LoraConfig
from fastlora.integrations.peft_rules import operands_of
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.replacement import check_own_forward
from fastlora.model.groups import GroupReport, group_layers
from fastlora.tables import Part, Shown

__all__ = ["FastLinear", "SwapReport", "accelerate_peft", "forward_counts", "register", "undo"]


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
    """Give PEFT's LoRA layers over plain linear layers the fused forward, in place.

    The class of each layer that is exactly a peft.tuners.lora.Linear over exactly an nn.Linear becomes
    `FastLinear`, a subclass that overrides only `forward`. Nothing else about the model changes, so it can be
    trained, saved, copied and pickled as before. `undo` reverses it. Layers that PEFT adds later are not
    included: call it again, or see `register`.

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
    kept = {name: why for name, layer in layers.items() if (why := _why_kept(layer)) is not None}
    swapped = {name: layer for name, layer in layers.items() if name not in kept}
    groups = None
    with commit() as changing:
        for layer in swapped.values():
            changing.assign(layer, "__class__", FastLinear)
        if group:
            groups = group_layers(model, {layer: name for name, layer in swapped.items()}, None, changing)
    found = {name: operands_of(layer) for name, layer in swapped.items()}
    stock = {name: why for name, why in found.items() if isinstance(why, str)}
    return SwapReport(tuple(name for name in swapped if name not in stock), stock, kept, groups)


@exclusive
def undo(model: nn.Module) -> None:
    """Turn every `FastLinear` of a model, swapped or made by `register`, back into PEFT's own layer.

    Raises:
        TypeError: If `model` is not an nn.Module, or a layer is of a subclass of FastLinear, or something
            keeps a reference to its forward, as accelerate's hooks do
            (accelerate.hooks.remove_hook_from_submodules removes them). The model is then unchanged.
    """
    _check_model(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FastLinear)}
    for name, layer in layers.items():
        if type(layer) is not FastLinear:
            raise TypeError(f"layer {name!r} must be exactly a FastLinear; got {type(layer).__name__}")
        check_own_forward(f"layer {name!r}", layer)
    with commit() as changing:
        for layer in layers.values():
            changing.assign(layer, "__class__", Linear)
            for name in ADDED:
                changing.drop(vars(layer), name)


def register(config: LoraConfig, *, group: bool = False) -> LoraConfig:
    """Have PEFT make a `FastLinear` wherever, by this config, it adapts exactly an nn.Linear.

    This includes layers that PEFT makes later by this config. PEFT does not save the choice with the config,
    so call `accelerate_peft` on a model that is loaded from files.

    Args:
        config: What get_peft_model takes.
        group: As of `accelerate_peft`.

    Returns:
        The same config: `get_peft_model(model, register(LoraConfig(...)))`.

    Raises:
        TypeError: If `config` is not a peft.LoraConfig.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"config must be a peft.LoraConfig; got {type(config).__name__}")
    make = Grouping(_make_layer) if check_bool(group, "group") else _make_layer
    config._register_custom_module({nn.Linear: make})  # type: ignore[dict-item]
    return config


def forward_counts(model: nn.Module) -> Counter[str]:
    """The number of eager forwards of `FastLinear` layers: under "fused", or under why PEFT's own ran.

    A forward that activation checkpointing runs again counts again; a compiled one does not count.

    Raises:
        TypeError: If `model` is not an nn.Module.
    """
    _check_model(model)
    counts: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, FastLinear):
            counts.update(vars(module).get("forward_counts", ()))
    return counts


def _make_layer(
    target: nn.Module,
    adapter_name: str,
    *,
    config: LoraConfig,
    parameter_name: str | None = None,
    **options: Any,
) -> FastLinear | None:
    """A layer for PEFT to use; None, for PEFT to make its own, if the target is not exactly an nn.Linear."""
    if parameter_name is not None or config.fan_in_fan_out or type(target) is not nn.Linear:
        return None
    # A quantized weight may also be in a plain nn.Linear; PEFT has a special layer for it.
    if type(target.weight) is not nn.Parameter:
        return None
    return FastLinear(target, adapter_name, config=config, **options)


def _why_kept(layer: Any) -> str | None:
    """Why a layer of PEFT is not swapped; None if it can be."""
    if type(layer) not in (Linear, FastLinear):
        return f"it is a {type(layer).__module__}.{type(layer).__qualname__}, not a peft.tuners.lora.Linear"
    base = layer.base_layer
    if type(base) is not nn.Linear:
        return f"its base layer is a {type(base).__name__}, not exactly an nn.Linear"
    if type(layer) is Linear and "forward" in vars(layer):
        return "its forward was replaced"
    return None


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
