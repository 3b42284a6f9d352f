"""A warning where a LoRA layer is replaced by a module without its update.

Programs that convert a model's linear layers find ours by isinstance, make theirs of `weight` and put them in
the place, as torchao's float8 training, TransformerEngine by accelerate and Transformers' `dequantize` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from fastlora.layer.active_adapter import REFERENCE
from fastlora.layer.training_warnings import is_watched
from fastlora.warning import warn

_Module = TypeVar("_Module", bound=nn.Module)

# Called with a module, a name and its new child of that name, once a LoRA layer was made.
observers: list[Callable[[nn.Module, str, nn.Module], None]] = []

_hooks: list[Any] = []
_plain: WeakSet[nn.Module] = WeakSet()


def watch() -> None:
    """From now on, look at what modules are put in another's place."""
    if not _hooks:
        _hooks.append(register_module_module_registration_hook(_before_registration))


def in_place_of_lora(plain: _Module) -> _Module:
    """The plain layer that a LoRA layer made of itself, which may take its place."""
    _plain.add(plain)
    return plain


def _before_registration(parent: nn.Module, name: str, new: Any) -> None:
    """Torch calls this before a module gets a child."""
    if new is not None:
        for look in observers:
            look(parent, name, new)


def _warn_of_loss(parent: nn.Module, name: str, new: nn.Module) -> None:
    """The text is one for all layers of a name and a kind of parent: the default filter shows it once."""
    old = parent._modules.get(name)
    if old is None or new in _plain or not any(map(is_watched, old.modules())) or _has_lora(new):
        return
    warn(
        f"{name!r} of {type(parent).__name__} is replaced by {type(new).__name__}, which has no LoRA: the "
        "update is lost. Convert a model before apply_lora, or after remove_lora, whose merge=True keeps the "
        "update in the weight"
    )


def _has_lora(module: nn.Module) -> bool:
    """Whether a layer with adapters is in it; a replica of DataParallel's is none that is watched."""
    return any(REFERENCE in vars(each) for each in module.modules())


observers.append(_warn_of_loss)
