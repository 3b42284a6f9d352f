"""The forward pass of FusedLoRALinear: it reads one state of the layer, and calls the formula on it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from fastlora import arguments
from fastlora.autograd.dora import dora_linear
from fastlora.autograd.function import lora_linear
from fastlora.formula import oracle
from fastlora.formula.grouped import Projection
from fastlora.formula.operands import autocasts, checked_base
from fastlora.layer import commits, sharing, training_warnings
from fastlora.layer.adapter import BIAS, MAGNITUDE, Adapter, with_bias
from fastlora.layer.adapters import AdaptedLinear
from fastlora.layer.base_weights import packed_format
from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.projection import projection_of


class ForwardPass(AdaptedLinear):
    """The part of FusedLoRALinear that computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: [..., in_features], in the weight's dtype and on its device.

        Returns:
            [..., out_features].

        Raises:
            TypeError: If x is no Tensor, or not in the weight's dtype.
            ValueError: If x's last dimension or device is wrong.
        """
        if not isinstance(x, Tensor):
            leaf = " of torch.fx, to which this layer must be a leaf" if isinstance(x, torch.fx.Proxy) else ""
            raise TypeError(f"x must be a Tensor; got {type(x).__name__}{leaf}")
        if self._group is not None and (taken := sharing.take(self, x)) is not None:
            return taken
        # Compiled code needs no check: its guards hold it to one state. And as `moved` would become a guard,
        # every commit would cause a recompilation.
        if is_compiling():
            return self._computed(x)
        moved = commits.moved
        try:
            y = self._computed(x)
        except Exception as error:  # perhaps because the operands came from two states
            if commits.moved == moved and not moved & 1:
                _explain(self, error)
                raise
        else:
            if commits.moved == moved and not moved & 1:
                return y
        return commits.undisturbed(self._computed, x)

    def _projection(self, x: Tensor) -> Projection | str:
        """What the layer computes, for its group; or why it must compute alone."""
        return projection_of(self)

    def _computed(self, x: Tensor) -> Tensor:
        active = self._active
        W, b, A, B, *third = self._operands(active)
        kept = self._buffers["_base_weight"]
        if kept is not None and not self.enabled:
            W = kept
        if self.holds_transposed:
            W = W.t()
        if self.split is not None:
            W, b, A, B = self.split.local(W, b, A, B)
        if W.requires_grad:
            W = frozen(W, "FusedLoRALinear")
        if self._batch is not None and self._batch.applies(self):
            return self._batch.computed(self, x, W, b)
        if active is not None and kept is None and self.enabled:
            s = arguments.scaling(active.r, active.alpha, active.rslora)
            dropout = active.dropout_now(self.training)
            if active.dora:
                return dora_linear(x, W, b, A, B, s, *third, dropout=dropout)
            y = lora_linear(x, W, b, A, B, s, dropout=dropout)
            return with_bias(y, s, *third) if third else y
        return self._by_one_matrix(x, W, b, active, third)

    def _operands(self, active: Adapter | None) -> tuple[Any, ...]:
        """W, b, A, B, and DoRA's m or the bias of B where the adapter has one."""
        own: dict[str, Any] = self._parameters  # read directly, as __getattr__ takes 0.6 us for each
        try:
            W, b = own["weight"], own["bias"]
            if active is None:
                return W, b, None, None
            if active._forward_pre_hooks or "forward" in active.__dict__:
                return W, b, *active()
            factors = active._parameters
            A, B = factors["lora_A"], factors["lora_B"]
            if active.dora:
                return W, b, A, B, factors[MAGNITUDE]
            return (W, b, A, B, factors[BIAS]) if active.lora_bias else (W, b, A, B)
        except KeyError:  # a parametrized or pruned W, a view of a flat parameter, a replica of DataParallel
            values = (None, None) if active is None else self.adapters[active.name]()
            return self.weight, self.bias, *values

    def _by_one_matrix(
        self, x: Tensor, W: Tensor, b: Tensor | None, active: Adapter | None, third: Any
    ) -> Tensor:
        """y where W holds all: the update is off, or merged, or the adapter has no part in this layer."""
        training_warnings.suspect(self)
        if not (x.is_nested or autocasts(x) or torch._C._get_tracing_state()):
            checked_base(x, W, b)
        if self.enabled or self.start_A is None or self.start_B is None:
            y = F.linear(x, W, b)
            if active is None or not (active.lora_bias and self.enabled):
                return y
            return with_bias(y, active.scaling, *third)
        return oracle.unfused(x, W, b, self.start_A, self.start_B, self.start_scaling)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which calls this first, for this layer and every model with it."""
        raise TypeError(
            "torch.jit.script cannot compile FusedLoRALinear, whose passes run in a Python function; "
            "use torch.compile, torch.export or torch.jit.trace, or merge first (remove_lora)"
        )


def frozen(W: Tensor, layer: str) -> Tensor:
    """W without a gradient, with a warning that names the kind of layer, as someone expects one."""
    warnings.warn(
        f"weight.requires_grad is True, but {layer} gives it no gradient; to train it use remove_lora and "
        "unfreeze",
        stacklevel=4,
    )
    return W.detach()


def _explain(layer: nn.Module, error: Exception) -> None:
    """Raise a TypeError that says so, if the error comes from a W that was packed after it got LoRA."""
    W = layer._parameters.get("weight")
    if W is not None and packed_format(layer) is None and (why := odd_tensor(W)):
        raise TypeError(
            f"weight must hold its numbers as they are; it is {why} (pack the base first, then apply_lora)"
        ) from error
