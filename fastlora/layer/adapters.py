"""The adapters of one layer, by name. The layer's `lora_A`, `r`, ... are those of the adapter in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlora.layer import replaced_layers, training_warnings
from fastlora.layer.active_adapter import REFERENCE
from fastlora.layer.adapter import ALL_SLOTS, DEFAULT, Adapter, Adapters
from fastlora.layer.adapter_batch import BATCH, AdapterBatch
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.division import Split
from fastlora.layer.groups import MEMBERSHIP, Membership, rejoin
from fastlora.layer.magnitude import row_norms
from fastlora.layer.new_weight import check_new_weight
from fastlora.layer.starts import start
from fastlora.layer.writable import check_own_writable


class OfAdapterInUse:
    """A layer's attribute that reads and sets that of its adapter in use; None if no adapter is in use."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        active = vars(layer)[REFERENCE]
        return getattr(active, self.name, None)  # plain LoRA has no magnitudes

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer._existing(self.name), self.name, value)


class Adapted(nn.Module):
    """The part of a LoRA layer that holds its adapters."""

    enabled: bool
    adapters: Adapters
    start_A: Tensor | None
    start_B: Tensor | None
    start_scaling: float = 0.0
    split: Split | None = None
    applied_as: str = ""
    holds_transposed = False  # see conv1d.py
    # The batch of mixed adapters in force, or that one just ended: see adapter_batch.py.
    _batch: AdapterBatch | None = None
    # The group that it is computed with: see groups.py.
    _group: Membership | None = None
    _own_attributes = (REFERENCE, BATCH, MEMBERSHIP, "enabled", "start_scaling", "split", "applied_as")

    lora_A, lora_B, lora_magnitude_vector, lora_B_bias = (OfAdapterInUse() for _ in range(4))
    r, alpha, dropout, rslora, init, dora, lora_bias, scaling = (OfAdapterInUse() for _ in range(8))
    _active: Adapter | None
    _base_weight: Tensor | None

    def _begin(self, name: str, first: Adapter) -> None:
        first.name, first.of_embedding = name, isinstance(self, nn.Embedding)
        self.adapters = Adapters()
        self.adapters.add_module(name, first)
        self.adapters.train(self.training)
        # Through `vars`: an assignment would register the adapter as a second submodule.
        vars(self)[REFERENCE] = first
        self.enabled = True
        self.register_buffer("_base_weight", None, persistent=False)
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        training_warnings.watch(self)
        replaced_layers.watch()

    def _apply(self, fn: Any, recurse: bool = True) -> Adapted:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._active is not None and self._active.narrowed_from is not None:
            training_warnings.look_again(self)
        return self

    def __setstate__(self, state: Any) -> None:
        """As nn.Module's; the copied or unpickled layer gets the training warnings of a new one."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        vars(self).pop(BATCH, None)
        rejoin(self)
        training_warnings.watch(self)
        replaced_layers.watch()

    @property
    def active(self) -> Adapter | None:
        """The adapter in use; None if this layer has no part in it."""
        return self._active

    @property
    def adapter(self) -> str | None:
        """Name of the adapter in use; None if this layer has no part in it."""
        return None if self._active is None else self._active.name

    @property
    def in_batch(self) -> bool:
        """Whether the layer is inside an `adapter_batch`."""
        return self._batch is not None and not self._batch.ended

    def _existing(self, name: str) -> Adapter:
        """The adapter in use, for setting one of its attributes; AttributeError if there is none."""
        if self._active is None:
            raise AttributeError(
                f"{name} must be assigned where the layer has part in the adapter in use; it has not "
                f"(set_adapter first, or assign to layer.adapters[...], of {', '.join(self.adapters)})"
            )
        return self._active

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's; `layer.lora_A = nn.Parameter(...)` calls it and sets A of the adapter in use.

        Raises:
            TypeError: If a norm is fused into `weight` (see new_weight.py).
        """
        if name in ALL_SLOTS:
            setattr(self._existing(name), name, param)
            return
        if name == "weight":
            check_new_weight(self, param)
        super().register_parameter(name, param)

    @exclusive
    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Reset the adapter in use to its initial value: zero, or what `initialize` took out of W.

        Raises:
            ValueError: If A, B, m or b_B cannot be written in place.
        """
        active, A, B = self._active, self.start_A, self.start_B
        if active is None:
            return
        check_own_writable(active, active.slots, "the layer")
        if A is None or B is None:
            A, B = torch.empty_like(active.lora_A), torch.empty_like(active.lora_B)
            start(A, B, active.init, active.of_embedding)
        with commit() as changing:
            changing.write(active.lora_A, A)
            changing.write(active.lora_B, B)
            if active.dora:
                changing.write(active.lora_magnitude_vector, row_norms(self))
            if active.lora_bias:
                changing.write(active.lora_B_bias, torch.zeros_like(active.lora_B_bias))

    def reset_adapters(self) -> None:
        """Reset all adapters, of a layer that has new values in W."""
        self._base_weight = self.start_A = self.start_B = None
        for name in self.adapters:
            adapter = self.adapters[name]
            adapter.reset_parameters()
            if adapter.dora:
                with torch.no_grad():
                    adapter.lora_magnitude_vector.copy_(row_norms(self))

    def __repr__(self) -> str:
        """One line, like nn.Linear's."""
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The layer's own fields, then the adapter's."""
        parts, active = [own] if (own := super().extra_repr()) else [], self._active
        if active is not None:
            parts.append(f"r={active.r}, alpha={active.alpha:g}")
            parts += [f"dropout={active.dropout:g}"] if active.dropout else []
            parts += ["rslora"] if active.rslora else []
            parts += ["dora"] if active.dora else []
            parts += ["lora_bias"] if active.lora_bias else []
        parts += ["merged"] if self.merged else []
        parts += [] if self.enabled else ["disabled"]
        parts += [] if self.adapter == DEFAULT else [f"adapter={self.adapter}"]
        idle = [name for name in self.adapters if name != self.adapter]
        parts += [f"idle={', '.join(idle)}"] if idle else []
        return ", ".join(parts)


class AdaptedLinear(Adapted, nn.Linear):
    """An nn.Linear with adapters."""

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Reset W, b and all adapters. Code that builds a model on "meta" calls this after `to_empty`."""
        nn.Linear.reset_parameters(self)
        if "adapters" in self._modules:  # nn.Linear's constructor calls this before `adapters` exists
            self.reset_adapters()
