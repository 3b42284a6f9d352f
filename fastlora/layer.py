"""FusedLoRALinear: nn.Linear with a frozen weight and a trained low-rank update."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlora import config, reference
from fastlora.autograd import lora_linear

# What nn.Module keeps for hooks, by attribute; from_linear and to_linear carry them over.
_HOOK_TABLES = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_called")))


class FusedLoRALinear(nn.Linear):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ + b with W and b frozen; A and B are trained.

    It stands in for nn.Linear: the same attributes, shapes and state_dict names (`weight`, `bias`), with
    `lora_A` [r, in_features] and `lora_B` [out_features, r] beside them. A checkpoint of the plain layer
    loads into it. B starts at zero, so the update starts at exactly zero.

    Dropout in training goes through separate torch ops, not the fused kernels.

    Args:
        in_features: K, size of an input row.
        out_features: N, size of an output row.
        bias: Whether the layer has a (frozen) bias.
        r: Rank of the update, >= 1.
        alpha: The update is scaled by s = alpha / r; None means r, so that s = 1.
        dropout: Probability in [0, 1) of dropping an entry of x on the low-rank branch, in training.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        init: How A starts: "gaussian" (std 1 / r) or "kaiming" (uniform, as PEFT's default).
        device: Where the parameters live.
        dtype: Dtype of W and b.
        adapter_dtype: Dtype of A and B; None means `dtype`. fp32 on a 16-bit base keeps master weights.

    Raises:
        TypeError: If r is not an int, alpha or dropout not a number, or a dtype not floating.
        ValueError: If r < 1, alpha is not finite, dropout is outside [0, 1), or init is unknown.

    Source: arXiv 2106.09685, section 4.1.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    _base_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "gaussian",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        adapter_dtype: torch.dtype | None = None,
    ) -> None:
        config.check_dtype("dtype", dtype)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._add_adapter(r, alpha, dropout, rslora, init, adapter_dtype)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "gaussian",
        adapter_dtype: torch.dtype | None = None,
    ) -> FusedLoRALinear:
        """Wrap an existing layer: the same weight and bias objects (now frozen), its hooks and its mode.

        Args:
            linear: An nn.Linear, and no subclass of it: a subclass may compute something else.
            r: As in the constructor, like all that follow.
            alpha: See the constructor.
            dropout: See the constructor.
            rslora: See the constructor.
            init: See the constructor.
            adapter_dtype: See the constructor.

        Raises:
            TypeError: If `linear` is not exactly an nn.Linear, has a parametrization or a replaced
                forward, or its weight is not floating point.
            ValueError: As in the constructor.
        """
        check_plain_linear("linear", linear)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.register_parameter("weight", linear.weight)
        layer.register_parameter("bias", linear.bias)
        layer._add_adapter(r, alpha, dropout, rslora, init, adapter_dtype)
        _carry_over(linear, layer)
        return layer

    def _add_adapter(
        self,
        r: int,
        alpha: float | None,
        dropout: float,
        rslora: bool,
        init: str,
        adapter_dtype: torch.dtype | None,
    ) -> None:
        config.check_dtype("adapter_dtype", adapter_dtype)
        self.r = config.check_rank(r)
        self.alpha = config.check_alpha(alpha, r)
        self.dropout = config.check_dropout(dropout)
        self.rslora = bool(rslora)
        self.init = config.check_init(init)
        self.enabled = True
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        kind: dict[str, Any] = {"device": self.weight.device, "dtype": adapter_dtype or self.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(r, self.in_features, **kind))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, r, **kind))
        self.register_buffer("_base_weight", None, persistent=False)
        self.reset_adapter()

    def reset_adapter(self) -> None:
        """Start the update anew: A by `init`, B zero."""
        if self.init == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / self.r)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    @property
    def scaling(self) -> float:
        """s, the factor of the update."""
        return config.scaling(self.r, self.alpha, self.rslora)

    @property
    def merged(self) -> bool:
        """Whether `weight` holds W + s B A at present."""
        return self._base_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: [..., in_features], in the weight's dtype and on its device.

        Returns:
            [..., out_features].

        Raises:
            TypeError: If x is not in the weight's dtype.
            ValueError: If x's last dimension or device is wrong.
        """
        W = self.weight
        if self.merged or not self.enabled:
            if self._base_weight is not None and not self.enabled:
                W = self._base_weight
            return F.linear(x, W, self.bias)
        if W.requires_grad:
            warnings.warn(
                "weight.requires_grad is True, but FusedLoRALinear gives its weight and bias no gradient; "
                "use remove_lora to train them",
                stacklevel=2,
            )
        if self.dropout > 0 and self.training:
            return reference.unfused(
                x, W, self.bias, self.lora_A, self.lora_B, self.scaling, dropout=self.dropout, training=True
            )
        return lora_linear(x, W, self.bias, self.lora_A, self.lora_B, self.scaling)

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """The [N, K] weight that forward applies: W + s B A while enabled, exactly W otherwise."""
        if self.enabled and not self.merged:
            return reference.effective_weight(self.weight, self.lora_A, self.lora_B, self.scaling)
        if self.enabled or self._base_weight is None:
            return self.weight.detach().clone()
        return self._base_weight.clone()

    @torch.no_grad()
    def merge(self) -> None:
        """Add s B A into `weight`, summed in fp32 and rounded once; W is kept aside for `unmerge`.

        While merged, forward is one plain linear and A and B receive no gradient. Merging twice changes
        nothing.
        """
        if self.merged:
            return
        total = reference.effective_weight(self.weight, self.lora_A, self.lora_B, self.scaling)
        self._base_weight = self.weight.detach().clone()
        self.weight.copy_(total)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put W back, bit for bit. Unmerging twice changes nothing."""
        if self._base_weight is None:
            return
        self.weight.copy_(self._base_weight)
        self._base_weight = None

    @torch.no_grad()
    def to_linear(self, merge: bool = True) -> nn.Linear:
        """A plain nn.Linear.

        Args:
            merge: Whether its weight is W + s B A (a new tensor) or W itself (the same parameter).
        """
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight: Tensor = self.weight
        if merge:
            weight = reference.effective_weight(
                self.weight if self._base_weight is None else self._base_weight,
                self.lora_A,
                self.lora_B,
                self.scaling,
            )
        else:
            self.unmerge()
        linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False)
        linear.bias = self.bias
        _carry_over(self, linear)
        return linear

    def extra_repr(self) -> str:
        """nn.Linear's, and the update's."""
        parts = [super().extra_repr(), f"r={self.r}, alpha={self.alpha:g}"]
        if self.dropout:
            parts.append(f"dropout={self.dropout:g}")
        parts += [name for name, on in (("rslora", self.rslora), ("merged", self.merged)) if on]
        parts += [] if self.enabled else ["disabled"]
        return ", ".join(parts)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A checkpoint always holds W, merged or not: adding the update again on loading would be wrong."""
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        if self._base_weight is not None:
            destination[prefix + "weight"] = self._base_weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint without A and B, the plain layer's, leaves the update as it is."""
        missing: list[str] = args[2]
        if prefix + "weight" in state_dict:
            self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args)
        names = [prefix + "lora_A", prefix + "lora_B"]
        if prefix + "weight" in state_dict and not any(name in state_dict for name in names):
            missing[:] = [name for name in missing if name not in names]


def check_plain_linear(name: str, module: object) -> None:
    """Raise TypeError unless `module` is exactly an nn.Linear that computes what nn.Linear computes."""
    if type(module) is not nn.Linear:
        raise TypeError(f"{name} must be exactly an nn.Linear; got {type(module).__name__}")
    if "forward" in vars(module):
        raise TypeError(f"{name} must keep nn.Linear's forward; its forward was replaced")
    if not module.weight.is_floating_point():
        raise TypeError(f"{name}.weight must be floating point; got {module.weight.dtype}")


def _carry_over(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the hooks and the training mode of `source`."""
    target.training = source.training
    for table in _HOOK_TABLES:
        getattr(target, table).update(getattr(source, table))
