"""QuantizedLoRALinear: a trained low-rank update on another library's packed linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.autograd.dora import dora_linear
from fastlora.autograd.quantized import quantized_linear, quantized_lora_linear
from fastlora.formats.format import Format
from fastlora.formats.registry import format_of
from fastlora.formula.grouped import Projection
from fastlora.formula.operands import BaseWeight, autocasts
from fastlora.layer import training_warnings
from fastlora.layer.adapter import DEFAULT, Options, with_bias
from fastlora.layer.base_weights import FORMAT, like_weight
from fastlora.layer.class_over import class_over
from fastlora.layer.fused_lora_linear import FusedLoRALinear
from fastlora.layer.magnitude import row_norms
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.packed_merging import PackedMerging
from fastlora.layer.projection import projection_of
from fastlora.layer.replacement import check_own_forward, linear_as


class QuantizedLoRALinear(PackedMerging, FusedLoRALinear):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b over a W that another library keeps in 4 or 8 bits.

    It is made around a layer of that library (`apply_lora`, `from_linear`), whose tensors, attributes and
    state_dict names it takes over; its class is also a subclass of that layer's. W is unpacked in each pass
    that reads it, to the bits of the library's own unpacking, and never kept. As in the library's layer, x is
    converted to the layer's compute dtype and y has x's dtype, under autocast too.

    `from_linear` takes such a layer; it must be of a known format (see docs/quantized.md). A and B are fp32
    if `adapter_dtype` is None. W cannot be merged in place, as packing W + s B A would round the update away:
    see `to_linear`.
    """

    @classmethod
    def _from_linear_unfrozen(
        cls, linear: Any, *, adapter_dtype: Any, name: str = DEFAULT, **options: Any
    ) -> QuantizedLoRALinear:
        """As FusedLoRALinear's, around a packed layer."""
        format = check_packed("linear", linear)
        adapter_dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
        checked = Options.checked(**options)
        layer = linear_as(linear, _class_over(type(linear), format.parameter))
        vars(layer)[FORMAT] = format.name
        if isinstance(b := vars(layer).get("bias"), Tensor):  # HQQ's, which is no parameter
            vars(layer)["bias"] = b.detach()
        norms = row_norms(linear) if checked.dora else None
        layer._begin(name, new_adapter(like_weight(linear), checked, adapter_dtype, norms))
        return layer

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """As the library's, and the adapters, which a library that writes its own keys leaves out."""
        state = super().state_dict(*args, **options)
        if _has_its_own_state(self._library_class):
            self.adapters.state_dict(
                destination=options.get("destination", state),
                prefix=options.get("prefix", "") + _ADAPTERS,
                keep_vars=options.get("keep_vars", False),
            )
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As the library's, and the adapters, which a library that reads its own keys does not know."""
        if not _has_its_own_state(self._library_class):
            return super().load_state_dict(state_dict, strict, assign)
        updates = {name: value for name, value in state_dict.items() if name.startswith(_ADAPTERS)}
        if updates:
            self.adapters.load_state_dict(
                {name.removeprefix(_ADAPTERS): value for name, value in updates.items()}, strict, assign
            )
        # A copy, as the library takes the values out of it.
        rest = {name: value for name, value in state_dict.items() if name not in updates}
        return super().load_state_dict(rest, strict, assign)

    def _base_for(self, x: Tensor) -> BaseWeight:
        """W as it is packed, in the dtype that an x is multiplied in."""
        format = self.format
        autocast = torch.get_autocast_dtype(x.device.type) if autocasts(x) else None
        return format.base_of(self, format.compute_dtype(self, x.dtype, autocast))

    def _projection(self, x: Tensor) -> Projection | str:
        try:
            return projection_of(self, self._base_for(x))
        except ValueError as error:  # the tensors do not hold W now
            return str(error)

    def _computed(self, x: Tensor) -> Tensor:
        base, b, active = self._base_for(x), self.bias, self._active
        if self._batch is not None and self._batch.applies(self):
            return self._batch.computed(self, x, base, b)
        if active is None or not self.enabled:
            training_warnings.suspect(self)
            return quantized_linear(x, base, b)
        A, B, *third = active()
        s = arguments.scaling(active.r, active.alpha, active.rslora)
        dropout = active.dropout_now(self.training)
        if active.dora:
            return dora_linear(x, base, b, A, B, s, *third, dropout=dropout)
        y = quantized_lora_linear(x, base, b, A, B, s, dropout=dropout)
        return with_bias(y, s, *third) if third else y

    def reset_parameters(self) -> None:
        """Refused: a packed W is not drawn anew.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"reset_parameters must draw W, and this one is packed as {self.format.about} (reset_adapter "
            "resets A and B)"
        )


_ADAPTERS = "adapters."


def check_packed(name: str, module: Any) -> Format:
    """The packed format of a module, called `name` in messages, that LoRA can go on.

    Raises:
        TypeError: If no format holds the module, it has LoRA already, or calling it runs another forward.
        ValueError: If its tensors do not hold W as the format does.
    """
    format = format_of(module)
    if format is None:
        raise TypeError(
            f"{name} must be a packed linear layer of a known format; got {type(module).__name__}"
        )
    check_own_forward(name, module)
    format.base_of(module, format.values_dtype(module))
    return format


def _class_over(library: type, parameter: str = "weight") -> type[QuantizedLoRALinear]:
    """The LoRA class over a library's class.

    Class methods stay the library's own: HQQ's choose the forward of the class that they are called on.
    """
    about: dict[str, Any] = {
        name: staticmethod(getattr(library, name))
        for name, value in vars(library).items()
        if isinstance(value, classmethod)
    }
    if parameter != "weight":
        about["weight"] = property(attrgetter(parameter))
    return class_over(QuantizedLoRALinear, library, _blank, parameter, **about)


def _has_its_own_state(library: Any) -> bool:
    """Whether the library's class writes and reads the keys of its state_dict itself, as HQQ's does."""
    return library.state_dict is not nn.Module.state_dict


def _blank(library: type, parameter: str = "weight") -> QuantizedLoRALinear:
    """An empty layer, for copy and pickle to fill."""
    cls = _class_over(library, parameter)
    return cls.__new__(cls)
