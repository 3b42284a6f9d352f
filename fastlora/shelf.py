"""The adapters of a layer that are not in use, and how one of them comes into use.

A layer computes with what is registered as its `lora_A` and `lora_B`. Its other adapters lie on a shelf, the
child module `adapters`. A switch exchanges parameter objects between the two: nothing is copied, forward
knows nothing of it, and compiled code meets tensors of the same kind.

A state_dict does not depend on which adapter is in use: the adapter "default" is always saved as `lora_A` and
`lora_B`, any other one as `adapters.<name>.lora_A` and `adapters.<name>.lora_B`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlora import config
from fastlora.changes import Commit
from fastlora.writable import check_own_writable

DEFAULT = "default"
SLOTS = ("lora_A", "lora_B")
_SHELF = "adapters"
_LONGEST_NAME = 100  # a directory is called so, and file systems stop at 255
_ORTHOGONAL_STD = 0.1  # PEFT's


class Options(NamedTuple):
    """How an update is scaled, regularized and started; the names are FusedLoRALinear's."""

    r: int
    alpha: float
    dropout: float
    rslora: bool
    init: str

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return config.scaling(self.r, self.alpha, self.rslora)


OPTIONS = Options._fields


class Adapter(nn.Module):
    """An adapter that is not in use; on a shelf it is frozen, so that no optimizer moves it.

    Args:
        A: [r, K].
        B: [N, r].
        options: What comes along into the layer.
        trains: Whether A and B are trained while in use.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, options: Options, trains: tuple[bool, bool] = (True, True)
    ) -> None:
        super().__init__()
        self.options, self.trains = options, trains
        for slot, parameter in zip(SLOTS, (A, B), strict=True):
            self.register_parameter(slot, parameter)

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options._asdict().items())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own = f"{_SHELF}.{DEFAULT}."
        super()._save_to_state_dict(destination, prefix.removesuffix(own), keep_vars)


class Shelf(nn.ModuleDict):
    """The adapters of a layer that are not in use, by name."""


def check_name(name: object) -> str:
    """The name, if it can be a key of a state_dict and a directory; else TypeError or ValueError."""
    wanted = (
        f"adapter name must be letters, digits, '_' and '-', at most {_LONGEST_NAME}, not starting with '-'; "
        f"got {config.shown(name)}"
    )
    if not isinstance(name, str):
        raise TypeError(wanted)
    if len(name) > _LONGEST_NAME or re.fullmatch(r"\w[\w-]*", name, re.ASCII) is None:
        raise ValueError(wanted)
    if hasattr(Shelf, name) or name == "training":
        raise ValueError(f"adapter name must not be an attribute of nn.ModuleDict; got {name!r}")
    return name


def start(A: Tensor, B: Tensor, init: str) -> None:
    """Start an update at exactly zero: A [r, K] by `init`, B [N, r] zero where A is not."""
    if init == "gaussian":
        nn.init.normal_(A, std=1 / A.shape[0])
    elif init == "kaiming":
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    else:
        nn.init.normal_(A, std=_ORTHOGONAL_STD)
    nn.init.zeros_(B)
    if init == "orthogonal":
        halfway = (A.shape[0] + 1) // 2
        with torch.no_grad():
            A[halfway:] = 0
            B[:, halfway:].normal_(std=_ORTHOGONAL_STD)


def new_adapter(weight: Tensor, options: Options, dtype: torch.dtype | None) -> Adapter:
    """An adapter at its start for a weight [N, K], on its device; `dtype` None: see `adapter_dtype_over`."""
    N, K = weight.shape
    kind: dict[str, Any] = {"device": weight.device, "dtype": config.adapter_dtype_over(weight.dtype, dtype)}
    with torch.inference_mode(False):
        A, B = (
            nn.Parameter(torch.empty(options.r, K, **kind)),
            nn.Parameter(torch.empty(N, options.r, **kind)),
        )
    start(A, B, options.init)
    return Adapter(A, B, options)


def blank_adapter(weight: Tensor) -> Adapter:
    """What a layer holds while an adapter is in use that it has no part in: rank 1, zero, never trained."""
    N, K = weight.shape
    dtype = config.adapter_dtype_over(weight.dtype)
    with torch.inference_mode(False):
        A, B = (
            nn.Parameter(weight.new_zeros(shape, dtype=dtype), requires_grad=False)
            for shape in ((1, K), (N, 1))
        )
    return Adapter(A, B, Options(r=1, alpha=1.0, dropout=0.0, rslora=False, init="gaussian"), (False, False))


def shelf_of(layer: nn.Module) -> dict[str, Adapter]:
    """The adapters of a layer that are not in use; a new dict."""
    shelf: Any = layer._modules.get(_SHELF)
    return {} if shelf is None else dict(shelf.items())


def put_on_shelf(layer: nn.Module, name: str, adapter: Adapter, changing: Commit) -> None:
    """Give a layer one more adapter, not in use."""
    shelf: Any = layer._modules.get(_SHELF)
    if shelf is None:
        shelf = Shelf()
        shelf.train(layer.training)
        changing.put(layer._modules, _SHELF, shelf)
    adapter.train(layer.training)
    for slot in SLOTS:
        changing.freeze(getattr(adapter, slot))
    changing.put(shelf._modules, name, adapter)


def take_off_shelf(layer: nn.Module, name: str, changing: Commit) -> Adapter:
    """Take an adapter away from a layer; an empty shelf goes too."""
    shelf: Any = layer._modules[_SHELF]
    adapter: Adapter = shelf[name]
    changing.drop(shelf._modules, name)
    if not shelf:
        changing.drop(layer._modules, _SHELF)
    return adapter


def exchange(layer: Any, name: str | None, incoming: Adapter, changing: Commit) -> None:
    """Put the adapter in use on the shelf (a blank one is dropped) and `incoming` in its place.

    Args:
        layer: The FusedLoRALinear.
        name: Of `incoming`; None where it is a blank.
        incoming: No longer on the shelf.
        changing: What this is a part of.
    """
    parameters = layer._parameters
    if layer.adapter is not None:
        A, B = (parameters[slot] for slot in SLOTS)
        trains = (A.requires_grad, B.requires_grad)
        put_on_shelf(layer, layer.adapter, Adapter(A, B, options_of(layer), trains), changing)
    for slot, trained in zip(SLOTS, incoming.trains, strict=True):
        parameter = incoming._parameters[slot]
        changing.assign(parameter, "requires_grad", trained)
        changing.put(parameters, slot, parameter)
    for option, value in incoming.options._asdict().items():
        changing.put(vars(layer), option, value)
    changing.put(vars(layer), "adapter", name)


def check_refillable(layer: Any, adapter: str, what: str) -> None:
    """Raise ValueError, calling the layer `what`, unless this adapter of it can take other values."""
    check_own_writable(layer if layer.adapter == adapter else shelf_of(layer)[adapter], SLOTS, what)


def options_of(layer: Any) -> Options:
    """The options of the adapter that a layer has in use."""
    return Options(*(getattr(layer, option) for option in OPTIONS))


def adapters_of(layer: Any) -> dict[str, tuple[Tensor, Tensor, Options]]:
    """A [r, K], B [N, r] and options of every adapter of a layer, the one in use first."""
    found = {} if layer.adapter is None else {layer.adapter: (layer.lora_A, layer.lora_B, options_of(layer))}
    shelf = shelf_of(layer)
    return found | {name: (kept.lora_A, kept.lora_B, kept.options) for name, kept in shelf.items()}


def name_in_use(layers: Iterable[Any]) -> str | None:
    """The adapter that layers have in use; None where there are no layers.

    Raises:
        ValueError: If they do not agree.
    """
    names = dict.fromkeys(layer.adapter for layer in layers if layer.adapter is not None)
    if len(names) > 1:
        raise ValueError(
            f"layers must have one adapter in use; they have {', '.join(names)} (see set_adapter)"
        )
    return next(iter(names), None)


def idle_parameters(layer: Any) -> Iterator[nn.Parameter]:
    """The parameters of a layer's adapters that are not in use, and of a blank one."""
    for kept in shelf_of(layer).values():
        yield from kept.parameters()
    if layer.adapter is None:
        yield from (layer.lora_A, layer.lora_B)


def rename_saved(state_dict: dict[str, Any], prefix: str, adapter: str | None) -> None:
    """Give A and B in use the names that they are saved under, whichever adapter is in use."""
    if adapter == DEFAULT:
        return
    for slot in SLOTS:
        tensor = state_dict.pop(prefix + slot)
        if adapter is not None:
            state_dict[_key(prefix, adapter, slot)] = tensor


def rename_loaded(state_dict: dict[str, Any], prefix: str, adapter: str | None) -> None:
    """Undo `rename_saved`, also for the shelf: to each tensor the name of the place where it belongs now."""
    if adapter == DEFAULT:
        return
    for slot in SLOTS:
        default = state_dict.pop(prefix + slot, None)
        if default is not None:
            state_dict[_key(prefix, DEFAULT, slot)] = default
        if adapter is not None and (own := _key(prefix, adapter, slot)) in state_dict:
            state_dict[prefix + slot] = state_dict.pop(own)


def keep_idle(state_dict: dict[str, Any], prefix: str, layer: nn.Module) -> None:
    """Let a checkpoint of the plain layer leave the adapters on the shelf as they are: each loads itself."""
    for name, kept in shelf_of(layer).items():
        for slot in SLOTS:
            state_dict[_key(prefix, name, slot)] = kept._parameters[slot]


def name_missing(missing: list[str], prefix: str, adapter: str | None) -> None:
    """Say of A and B in use, found missing, by which names a state_dict should have held them."""
    if adapter == DEFAULT:
        return
    for slot in SLOTS:
        if prefix + slot in missing:
            missing.remove(prefix + slot)
            if adapter is not None:
                missing.append(_key(prefix, adapter, slot))


def saved_name(adapter: str, slot: str) -> str:
    """What A or B ("lora_A", "lora_B") of an adapter is called in its layer's state_dict."""
    return slot if adapter == DEFAULT else _key("", adapter, slot)


def _key(prefix: str, adapter: str, slot: str) -> str:
    return f"{prefix}{_SHELF}.{adapter}.{slot}"
