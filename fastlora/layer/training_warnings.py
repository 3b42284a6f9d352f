"""Updates that an optimizer is to train and that get no gradient, named once, at its first step.

A layer that is merged or disabled, or whose weight something reads without calling the layer, trains nothing,
and nothing else would tell: an optimizer passes over parameters without a gradient. Nor does one train what
it does not hold: made before `apply_lora` it has W and neither A nor B, before `set_adapter` other ones.
After that step only layers are looked at that ran merged or disabled while training, or changed adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

_SLOTS: Final = ("lora_A", "lora_B")
_NAMED: Final = 6

_layers: WeakSet[nn.Module] = WeakSet()
_suspects: WeakSet[nn.Module] = WeakSet()
_told: WeakSet[nn.Module] = WeakSet()
_seen: WeakSet[Optimizer] = WeakSet()
_with_closure: WeakSet[Optimizer] = WeakSet()
_hooks: list[Any] = []


def watch(layer: nn.Module) -> None:
    """Have a new LoRA layer looked at in the first steps of whatever optimizer holds its A or B.

    Only a weak reference to the layer is kept.
    """
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
    _layers.add(layer)


def suspect(layer: Any) -> None:
    """Look at a layer again at the next step: it ran without its update, in training.

    A merged one, which nobody means to train, is named at once; the text is the same for every layer, so that
    Python's default filter shows it once.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return
    if not torch.is_grad_enabled() or not layer.training or not _trained(layer):
        return
    if not layer.merged or not layer.enabled:
        _suspects.add(layer)
    elif layer not in _told:
        _told.add(layer)
        warnings.warn(
            "a merged FusedLoRALinear is one plain linear, in training too: its A and B get no gradient; "
            "call unmerge_lora (or layer.unmerge) before training, or model.eval() where none is meant",
            stacklevel=4,
        )


def look_again(layer: nn.Module) -> None:
    """Look at a layer at the next step: another adapter of it came into use."""
    _suspects.add(layer)


def why_untrained(layer: Any) -> str:
    """Why a layer's update got no gradient, as far as the layer can tell."""
    if not layer.enabled:
        return "disabled"
    return "merged" if layer.merged else "not used by the loss"


def idle_updates(layers: Iterable[Any]) -> list[Any]:
    """The layers of these that have an A or B which is to be trained and has no gradient."""
    return [layer for layer in layers if any(map(_lacks_gradient, _trained(layer)))]


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return
    known = optimizer in _seen
    if known and not _suspects:
        return
    groups = optimizer.param_groups
    if all(not isinstance(lr := group.get("lr"), torch.Tensor) and lr == 0 for group in groups):
        return  # nothing is trained: so checkpointing sets up the state, with gradients of its own
    closure = any(argument is not None for argument in (*args[1:], kwargs.get("closure")))
    if closure and optimizer not in _with_closure:
        _with_closure.add(optimizer)
        return  # its gradients are made after this; they are still there at the second step
    own = _held(optimizer)
    mine: list[Any] = []
    passed_by: list[Any] = []
    for layer in list(_suspects if known else _layers):
        trained = _trained(layer)
        if any(id(each) in own for each in trained):
            mine.append(layer)
        elif not trained:
            _suspects.discard(layer)
        elif _holds_another_part(own, layer):
            passed_by.append(layer)
    _seen.add(optimizer)
    idle = [
        layer
        for layer in mine
        if layer not in _told and any(id(each) in own and _lacks_gradient(each) for each in _trained(layer))
    ]
    for layer in mine:
        _suspects.discard(layer)
    if idle:
        _told.update(idle)
        warnings.warn(_text(idle, type(optimizer).__name__), stacklevel=3)
    if passed_by:
        _look_for_another(optimizer, passed_by, known)


def _look_for_another(optimizer: Optimizer, layers: list[Any], known: bool) -> None:
    """Name the layers that no optimizer trains; not in its first step, as another's may come after it."""
    if not known:
        _suspects.update(layers)
        return
    held = set().union(*(_held(each) for each in _seen))
    lost = [
        layer
        for layer in layers
        if layer not in _told and not any(id(each) in held for each in _trained(layer))
    ]
    for layer in layers:
        _suspects.discard(layer)
    if lost:
        _told.update(lost)
        warnings.warn(
            f"{type(optimizer).__name__} holds other parameters of LoRA layers and not the A and B in use, "
            f"which get gradients and are not trained: {_listed(sorted(map(_name, lost)))}. Make it after "
            "apply_lora and set_adapter, of the parameters that require gradients",
            stacklevel=4,
        )


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _holds_another_part(own: set[int], layer: nn.Module) -> bool:
    """Whether an optimizer that does not hold A and B, which got gradients, has what got none of a layer."""
    others = [each for each in layer.parameters() if id(each) in own]
    return (
        bool(others) and all(map(_lacks_gradient, others)) and not all(map(_lacks_gradient, _trained(layer)))
    )


def _trained(layer: nn.Module) -> list[nn.Parameter]:
    active = vars(layer)["_active"]
    slots = (None if active is None else active._parameters.get(slot) for slot in _SLOTS)
    return [parameter for parameter in slots if parameter is not None and parameter.requires_grad]


def _lacks_gradient(parameter: nn.Parameter) -> bool:
    # Megatron keeps gradients under another name.
    return parameter.grad is None and getattr(parameter, "main_grad", None) is None


def _text(idle: list[Any], optimizer: str) -> str:
    named = _listed(f"{_name(layer)} ({why_untrained(layer)})" for layer in sorted(idle, key=_name))
    return (
        f"{optimizer} is to train the LoRA updates of {named}, which have no "
        "gradient in this step. A layer trains where it is called, enabled and unmerged, and its output "
        "reaches the loss; code that reads layer.weight itself, as TRL's SFTTrainer does with lm_head, "
        "leaves the update out. Experts that got no tokens may yet get some; freeze what is not to be trained"
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _name(layer: Any) -> str:
    name = layer.applied_as
    return repr(name[-80:]) if name else f"a layer {layer.in_features} -> {layer.out_features}"
