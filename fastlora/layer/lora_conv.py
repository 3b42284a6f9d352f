"""LoRAConv: a trained low-rank update on a convolution, unfused."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from fastlora.layer import base_weights, training_warnings
from fastlora.layer.adapter import Adapter, Options
from fastlora.layer.commits import exclusive
from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.replacement import check_own_forward
from fastlora.layer.unfused import Unfused

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS: Final[Any] = (F.conv1d, F.conv2d, F.conv3d)


class LoRAConv(Unfused, _ConvNd):
    """y = W * x + s B * (A * x) + b, convolutions, with `weight` and `bias` frozen.

    It is made around an nn.Conv1d, Conv2d or Conv3d (`apply_lora` by name; "all-linear" means none), whose
    parameters, attributes and state_dict names it takes over; its class is also a subclass of that layer's. A
    is [r, K] with K = in_channels times the kernel's size, a kernel of its own for each rank, and B [N, r], a
    1 x 1 convolution; files have both in PEFT's shapes. Dropout falls on the x that A takes.
    """

    _library_class: type = nn.Conv2d
    weight: nn.Parameter

    @classmethod
    def around(cls, conv: Any, **options: Any) -> LoRAConv:
        """A LoRA layer around a convolution, which is unchanged; the caller freezes W and b."""
        check_conv("conv", conv)
        return _OVER[type(conv)]._around(conv, **options)

    @property
    def in_features(self) -> int:
        """K: in_channels times the kernel's size."""
        return self.weight[0].numel()

    @property
    def out_features(self) -> int:
        """N: out_channels."""
        return self.out_channels

    def new_adapter(self, options: Options, dtype: torch.dtype | None) -> Adapter:
        """A new adapter, whose update is zero."""
        for name in ("dora", "lora_bias"):
            if getattr(options, name):
                raise ValueError(f"{name} must be False for a convolution (exclude_modules leaves it out)")
        return new_adapter(base_weights.like_weight(self), options, dtype)

    def _computed(self, x: Tensor) -> Tensor:
        """[..., in_channels, *sizes] -> [..., out_channels, *sizes]."""
        active, kept = self._active, self._base_weight
        off = active is None or not self.enabled
        y: Tensor = self._conv_forward(x, self._weight_now(), self.bias)
        if active is None or off or kept is not None:
            training_warnings.suspect(self)
            return y
        A, B = active()
        conv = _FUNCTIONS[len(self.kernel_size) - 1]
        x = F.dropout(x.to(A.dtype), active.dropout_now(self.training))
        p = conv(x, A.view(-1, *self.weight.shape[1:]), None, self.stride, self.padding)
        update: Tensor = conv(p, B.view(*B.shape, *(1 for _ in self.kernel_size)))
        return y + (update * active.scaling).to(y.dtype)

    def _sum(self) -> Tensor:
        return super()._sum().view(self.weight.shape)

    @exclusive
    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """A copy of the weight that forward applies, in `weight`'s shape."""
        return super().effective_weight().view(self.weight.shape)


def is_conv(module: object) -> bool:
    """Whether a module is one of torch's convolutions, or of a subclass, but no LoRA layer."""
    return isinstance(module, CONVOLUTIONS) and not isinstance(module, LoRAConv)


def check_conv(name: str, module: Any) -> None:
    """Raise, calling the module `name`, unless LoRA on it computes what PEFT's does, and merges to that.

    Raises:
        TypeError: If it is of a subclass, its forward was replaced, or a parameter is no plain tensor.
        ValueError: If it has groups, of which PEFT's B alone has them, or a dilation or a padding mode, which
            PEFT's A lacks.
    """
    if type(module) not in CONVOLUTIONS:
        raise TypeError(f"{name} must be exactly an nn.Conv1d, Conv2d or Conv3d; got {type(module).__name__}")
    check_own_forward(name, module)
    if set(module._parameters) != {"weight", "bias"}:
        raise TypeError(f"{name} must hold a weight and a bias; it has {', '.join(module._parameters)}")
    for own, tensor in module._parameters.items():
        if tensor is not None and (why := odd_tensor(tensor)):
            raise TypeError(f"{name}.{own} must hold its numbers as they are; it is {why}")
    for what, found, wanted in (
        ("groups", module.groups, 1),
        ("dilation", max(module.dilation), 1),
        ("padding_mode", module.padding_mode, "zeros"),
    ):
        if found != wanted:
            raise ValueError(f"{name} must have {what}={wanted!r} to take LoRA; it has {found!r}")


class LoRAConv1d(LoRAConv, nn.Conv1d):
    """A LoRAConv over an nn.Conv1d."""

    _library_class = nn.Conv1d


class LoRAConv2d(LoRAConv, nn.Conv2d):
    """A LoRAConv over an nn.Conv2d."""

    _library_class = nn.Conv2d


class LoRAConv3d(LoRAConv, nn.Conv3d):
    """A LoRAConv over an nn.Conv3d."""

    _library_class = nn.Conv3d


_OVER: Final = {nn.Conv1d: LoRAConv1d, nn.Conv2d: LoRAConv2d, nn.Conv3d: LoRAConv3d}
