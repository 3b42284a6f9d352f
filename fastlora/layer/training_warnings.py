"""Warnings about updates that are meant to be trained but are not, at an optimizer's first step.

A layer trains nothing if it is merged or disabled, or if something reads its weight without calling it.
Nothing else would say so: an optimizer skips parameters without a gradient. Nor does it train parameters that
it does not hold. One made before `apply_lora` has neither A nor B; one made before `set_adapter` has those of
another adapter; one made before they were replaced, as by `load_state_dict(assign=True)`, has the old ones.
A and B that were converted to 16 bits with the model lose small steps. Those frozen with everything else, as
by PEFT's `prepare_model_for_kbit_training`, leave an optimizer nothing to train. After the first step only
layers are checked that ran merged or disabled while training, or whose adapter was switched, converted or
replaced.
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

from fastlora.arguments import listed
from fastlora.layer.optimizers import has_gradients, held, lacks_gradient, parameters_of
from fastlora.warning import warn

_NAMED: Final = 6

_layers: WeakSet[nn.Module] = WeakSet()
_suspects: WeakSet[nn.Module] = WeakSet()
_replaced: WeakSet[nn.Module] = WeakSet()  # adapters
_told: WeakSet[nn.Module] = WeakSet()
_seen: WeakSet[Optimizer] = WeakSet()
_hooks: list[Any] = []


def watch(layer: nn.Module) -> None:
    """Check a new LoRA layer in the first steps of any optimizer that holds its A or B.

    Only a weak reference to the layer is kept.
    """
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
    _layers.add(layer)


def forget(layer: nn.Module) -> None:
    """Do not check a layer any more, as another has taken its place."""
    _layers.discard(layer)


def watched() -> list[Any]:
    """The LoRA layers that are alive, of all models."""
    return list(_layers)


def is_watched(module: nn.Module) -> bool:
    """Whether a module is a LoRA layer, which none has taken the place of."""
    return module in _layers


def suspect(layer: Any) -> None:
    """Check a layer again at the next step, because it ran without its update while training.

    For a merged layer the warning comes at once, as nobody trains one on purpose. Its text is the same for
    every layer, as its line is, so that Python's default filter shows it once.
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
    """Check a layer again at the next step, because its adapter was switched or converted."""
    _suspects.add(layer)


def replaced(adapter: nn.Module) -> None:
    """Check an adapter's layer again at the next step, because A, B or m is another parameter now."""
    _replaced.add(adapter)


def why_untrained(layer: Any) -> str:
    """Why a layer's update got no gradient, as far as the layer's state shows."""
    if not layer.enabled:
        return "disabled"
    return "merged" if layer.merged else "not used by the loss"


def idle_updates(layers: Iterable[Any]) -> list[Any]:
    """Those layers whose A or B requires a gradient and has none."""
    return [layer for layer in layers if any(map(lacks_gradient, _trained(layer)))]


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return
    known = optimizer in _seen
    if _replaced:
        _suspects.update(layer for layer in _layers if vars(layer)["_active"] in _replaced)
    if (known and not _suspects) or not has_gradients(optimizer, args, kwargs):
        return
    own = held(optimizer)
    if not known and (frozen := _frozen_with_all(optimizer, own)):
        _warn_of_frozen(optimizer, frozen)
    dead = all(map(lacks_gradient, parameters_of(optimizer)))
    mine, passed_by = _of_optimizer(own, dead, list(_suspects if known else _layers))
    _seen.add(optimizer)
    _suspects.difference_update(mine)
    idle = [
        layer
        for layer in mine
        if layer not in _told and any(id(each) in own and lacks_gradient(each) for each in _trained(layer))
    ]
    if idle:
        _told.update(idle)
        warn(_text(idle, type(optimizer).__name__))
    if passed_by:
        _look_for_another(optimizer, passed_by, known)
    if narrowed := [layer for layer in mine if layer.active.narrowed_from is not None]:
        _warn_of_narrowed(narrowed)


def _of_optimizer(own: set[int], dead: bool, layers: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """The layers whose A or B is in `own`, and those that it passes by."""
    mine: list[Any] = []
    passed_by: list[Any] = []
    for layer in layers:
        batch: Any = layer._batch
        if batch is not None and batch.trains:  # only the adapters of its rows get gradients
            continue
        trained = _trained(layer)
        if not trained:
            _suspects.discard(layer)
        elif any(id(each) in own for each in trained):
            mine.append(layer)
        if _passes_by(own, dead, layer):
            passed_by.append(layer)
        elif layer in mine:
            _replaced.discard(layer.active)
    return mine, passed_by


def _frozen_with_all(optimizer: Optimizer, own: set[int]) -> list[Any]:
    """The layers whose A and B are frozen where the optimizer has nothing to train; none if it has.

    Those are all layers for one that holds no parameters: a trainer leaves out what is frozen.
    """
    if any(each.requires_grad or not lacks_gradient(each) for each in parameters_of(optimizer)):
        return []
    frozen = [layer for layer in _layers if not _trained(layer)]
    return [layer for layer in frozen if not own or any(id(each) in own for each in layer.parameters())]


def _warn_of_frozen(optimizer: Optimizer, layers: list[Any]) -> None:
    warn(
        f"{type(optimizer).__name__} trains nothing: A and B of {_names(layers)} require no gradient, nor "
        "does anything else that it holds. They may have been frozen with the whole model, as PEFT's "
        "prepare_model_for_kbit_training does: call that before apply_lora, or not at all",
    )


def _warn_of_narrowed(layers: list[Any]) -> None:
    """Warn of A and B that were made in a wide dtype and are trained in 16 bits after a conversion."""
    adapter = layers[0].active
    was, now = adapter.narrowed_from, adapter.lora_A.dtype
    for layer in layers:
        layer.active.narrowed_from = None
    warn(
        f"A and B of {_names(layers)} were made in {was} and are trained in {now}, "
        "to which .half() or .to(dtype) converted them with the model: small steps are rounded away. "
        "Convert the model before apply_lora, or say adapter_dtype where such updates are meant",
    )


def _look_for_another(optimizer: Optimizer, layers: list[Any], known: bool) -> None:
    """Warn of layers that no optimizer holds; not in the first step, as a second optimizer may follow."""
    if not known:
        _suspects.update(layers)
        return
    by_any = set().union(*map(held, _seen))
    lost = [
        layer
        for layer in layers
        if layer not in _told
        and not all(id(each) in by_any or lacks_gradient(each) for each in _trained(layer))
    ]
    _suspects.difference_update(layers)
    _replaced.difference_update(layer.active for layer in layers)
    if lost:
        _told.update(lost)
        warn(
            f"{type(optimizer).__name__} holds other parameters than the A and B in use of {_names(lost)}, "
            "which get gradients and are not trained. Make it after apply_lora, set_adapter and whatever "
            "replaces parameters (load_state_dict with assign=True), of those that require gradients",
        )


def _passes_by(own: set[int], dead: bool, layer: Any) -> bool:
    """Whether A or B has a gradient and is not in `own`, the ids of what an optimizer seems to hold for it.

    So it seems where it holds others of the layer, which have no gradient; or where A or B was replaced and
    it holds some of the layer, or nothing with a gradient (`dead`).
    """
    if all(id(each) in own or lacks_gradient(each) for each in _trained(layer)):
        return False
    others = [each for each in layer.parameters() if id(each) in own]
    if layer.active in _replaced:
        return dead or bool(others)
    return bool(others) and all(map(lacks_gradient, others))


def _trained(layer: nn.Module) -> list[nn.Parameter]:
    active = vars(layer)["_active"]
    return [] if active is None else [each for each in active.parameters() if each.requires_grad]


def _text(idle: list[Any], optimizer: str) -> str:
    named = listed(
        (f"{name_of(layer)} ({why_untrained(layer)})" for layer in sorted(idle, key=name_of)), _NAMED
    )
    return (
        f"{optimizer} is to train the LoRA updates of {named}, which have no "
        "gradient in this step. A layer trains where it is called, enabled and unmerged, and its output "
        "reaches the loss; code that reads layer.weight itself, as TRL's SFTTrainer does with lm_head, "
        "leaves the update out. Experts that got no tokens may yet get some; freeze what is not to be trained"
    )


def _names(layers: Iterable[Any]) -> str:
    return listed(sorted(map(name_of, layers)), _NAMED)


def name_of(layer: Any) -> str:
    """A layer's name in its model, or its sizes."""
    name = layer.applied_as
    return repr(name[-80:]) if name else f"a layer {layer.in_features} -> {layer.out_features}"
