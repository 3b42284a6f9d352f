"""The two unfused ways in which people write a LoRA layer, to compare FusedLoRALinear with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fastlora import arguments
from fastlora.arguments import check_size
from fastlora.formula import oracle


class ReferenceLoRALinear(nn.Module):
    """A LoRA linear layer in plain torch: the unfused layer that FusedLoRALinear is compared with.

    Args:
        in_features: K.
        out_features: N.
        bias: Whether the frozen layer has a bias.
        r: Rank of the update.
        alpha: The update is scaled by alpha / r; None means r.
        dropout: Dropout probability on the input of the low-rank branch.
        rslora: Scale by alpha / sqrt(r) instead (arXiv 2312.03732).
        device: Where the parameters live.
        dtype: Dtype of W and b.
        adapter_dtype: Dtype of A and B; None means `dtype`, but fp32 where that has 16 bits.
    """

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        adapter_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments.check_dtype("dtype", dtype)
        in_features = check_size("in_features", in_features)
        out_features = check_size("out_features", out_features)
        arguments.check_bool(bias, "bias")
        self.scaling = _scaling(r, alpha, rslora)
        self.dropout = arguments.check_dropout(dropout)
        linear = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight = linear.weight.requires_grad_(False)
        self.bias = None if linear.bias is None else linear.bias.requires_grad_(False)
        chosen = arguments.check_dtype("adapter_dtype", adapter_dtype)
        adapter_dtype = arguments.adapter_dtype_over(self.weight.dtype, chosen)
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device=device, dtype=adapter_dtype))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, device=device, dtype=adapter_dtype))
        nn.init.normal_(self.lora_A, std=1 / r)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if not self.enabled:
            return F.linear(x, self.weight, self.bias)
        return oracle.unfused(
            x,
            self.weight,
            self.bias,
            self.lora_A,
            self.lora_B,
            self.scaling,
            dropout=self.dropout,
            training=self.training,
        )

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """The [N, K] weight that forward applies: W + s B A while enabled, W otherwise."""
        if not self.enabled:
            return self.weight
        return oracle.effective_weight(self.weight, self.lora_A, self.lora_B, self.scaling)


def _scaling(r: int, alpha: float | None, rslora: bool = False) -> float:
    """s of a rank and an alpha, both checked."""
    arguments.check_rank(r)
    alpha = arguments.check_alpha(alpha)
    return arguments.scaling(r, float(r) if alpha is None else alpha, arguments.check_bool(rslora, "rslora"))


class LoRAParametrization(nn.Module):
    """W -> W + s B A, for `torch.nn.utils.parametrize`: LoRA in weight space, as tutorials write it.

    It forms the full [N, K] weight at each forward and its full gradient at each backward.

    Args:
        out_features: N.
        in_features: K.
        r: Rank of the update.
        alpha: The update is scaled by alpha / r; None means r.
        device: Where A and B live.
        dtype: Their dtype.

    Attributes:
        enabled: Where False, the parametrization returns W itself.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        r: int = 8,
        alpha: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arguments.check_dtype("dtype", dtype)
        in_features = check_size("in_features", in_features)
        out_features = check_size("out_features", out_features)
        self.scaling = _scaling(r, alpha)
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, device=device, dtype=dtype))
        nn.init.normal_(self.lora_A, std=1 / r)
        self.enabled = True

    def forward(self, W: Tensor) -> Tensor:
        """W [N, K] -> the effective weight [N, K]."""
        if not self.enabled:
            return W
        return W + (self.lora_B @ self.lora_A) * self.scaling

    @classmethod
    def register(cls, linear: nn.Linear, *, r: int = 8, alpha: float | None = None) -> LoRAParametrization:
        """Parametrize `linear.weight` in place and freeze the layer's own tensors."""
        weight = linear.weight
        lora = cls(*weight.shape, r=r, alpha=alpha, device=weight.device, dtype=weight.dtype)
        for parameter in linear.parameters():
            parameter.requires_grad_(False)
        parametrize.register_parametrization(linear, "weight", lora)
        return lora
