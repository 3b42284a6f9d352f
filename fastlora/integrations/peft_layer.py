"""PEFT's LoRA layers with a fused forward, used if it computes exactly what PEFT's would."""

from __future__ import annotations

from abc import ABCMeta
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from fastlora.autograd.dora import dora_linear
from fastlora.autograd.function import lora_linear
from fastlora.autograd.mixed import mixed_lora_linear
from fastlora.autograd.quantized import quantized_lora_linear
from fastlora.formula.grouped import Projection
from fastlora.formula.operands import BaseWeight
from fastlora.formula.runs import Runs
from fastlora.integrations.peft_arguments import why_not_fused
from fastlora.integrations.peft_package import Linear
from fastlora.integrations.peft_rules import Operands, mixed_operands_of, operands_of
from fastlora.layer import groups, sharing
from fastlora.layer.class_over import class_over
from fastlora.layer.conv1d import is_conv1d
from fastlora.layer.groups import Membership
from fastlora.routes.mixed import Factors

FUSED = "fused"
# What FastLinear adds to the attributes of PEFT's layer.
COUNTS = "forward_counts"
ADDED = (COUNTS, groups.MEMBERSHIP)


# PEFT's own classes of layers over packed layers, whose forward is Linear's formula.
_PACKED: Final = (
    ("peft.tuners.lora.bnb", "Linear4bit"),
    ("peft.tuners.lora.bnb", "Linear8bitLt"),
    ("peft.tuners.lora.torchao", "TorchaoLoraLinear"),
    ("peft.tuners.lora.hqq", "HqqLoraLinear"),
)


class _ShownAsPefts(ABCMeta):
    """What shows a fast class as PEFT's own, which errors of PEFT quote."""

    def __repr__(cls) -> str:
        return repr(pefts_class(cls))


class Fused(nn.Module, metaclass=_ShownAsPefts):
    """The part of a fast layer that is not PEFT's: the forward.

    Attributes:
        forward_counts: The number of eager forwards: under "fused", or under why PEFT's own ran.
    """

    forward_counts: Counter[str]
    # The group that it is computed with, if any.
    _group: Membership | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., K] -> [..., N]: fused if that is exactly the same, else by PEFT's own forward."""
        if kwargs.get("adapter_names") is not None:
            return self._mixed(x, *args, **kwargs)
        if self._group is not None and not (args or kwargs) and (taken := sharing.take(self, x)) is not None:
            count(self, FUSED)
            return taken
        operands = operands_of(self, x)
        if isinstance(operands, str):
            return self._stock_forward(operands, x, *args, **kwargs)
        obstacle = why_not_fused(operands, x, args, kwargs)
        if obstacle is not None:
            return self._stock_forward(obstacle, x, *args, **kwargs)
        count(self, FUSED)
        y = self._fused(x, operands)
        return y if operands.b_B is None else y + (operands.b_B * operands.s).to(y.dtype)

    def _fused(self, x: Tensor, operands: Operands) -> Tensor:
        W, b, A, B, s, dropout, m, _ = operands
        if isinstance(s, Tensor):
            # s is a tensor and is multiplied into B. As a float it would need a device synchronization and
            # could get no gradient.
            B, s = B * s, 1.0
        if m is not None:
            return dora_linear(x, W, b, A, B, s, m, dropout=dropout)
        if isinstance(W, BaseWeight):
            return quantized_lora_linear(x, W, b, A, B, s, dropout=dropout)
        return lora_linear(x, W, b, A, B, s, dropout=dropout)

    def _get_name(self) -> str:
        """PEFT's name for its layer, which its users print and compare."""
        return pefts_class(type(self)).__name__

    def _projection(self, x: Tensor) -> Projection | str:
        """What the layer computes for x, for its group; or why it must compute alone."""
        operands = operands_of(self, x)
        if isinstance(operands, str):
            return operands
        if (obstacle := why_not_fused(operands, x, (), {})) is not None:
            return obstacle
        if operands.m is not None or operands.trains_biases or is_conv1d(self.base_layer):
            return "DoRA, a trained bias or a Conv1D is computed alone"
        if isinstance(operands.s, Tensor):
            return "the scaling is a tensor"
        return Projection(*operands[:4], float(operands.s), operands.dropout)

    def __setstate__(self, state: Any) -> None:
        """As nn.Module's; a copied or unpickled layer joins the copy of its group."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        groups.rejoin(self)

    def _mixed(self, x: Tensor, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Tensor:
        """Rows of x that take different adapters."""
        plan = _planned if torch.compiler.is_compiling() else _kept_plan  # Dynamo warns of caches
        used, runs = plan(tuple(adapter_names))
        found = mixed_operands_of(self, used, x)
        obstacle: str | None
        if isinstance(found, str):
            obstacle = found
        elif x.dim() < 2 or len(x) != runs.items:
            obstacle = "there is not one name for each row"
        else:
            obstacles = (why_not_fused(operands, x, args, kwargs) for operands in found.values())
            obstacle = next(filter(None, obstacles), None)
        if obstacle is not None or isinstance(found, str):
            return self._stock_forward(str(obstacle), x, *args, adapter_names=adapter_names, **kwargs)
        count(self, FUSED)
        W, b = next(iter(found.values()))[:2]
        factors = [_factors(found[name]) if name in found else None for name in used]
        return mixed_lora_linear(x, W, b, runs, factors)

    def _stock_forward(self, why: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count(self, why)
        y: Tensor = super().forward(x, *args, **kwargs)
        return y


def count(layer: Any, way: str) -> None:
    """Count a forward of a layer, under "fused" or under why PEFT's own ran."""
    # Not when compiled: the counter would become a guard, and each count would cause a recompilation.
    if not torch.compiler.is_compiling():
        vars(layer).setdefault(COUNTS, Counter())[way] += 1


def _factors(operands: Operands) -> Factors:
    return Factors(operands.A, operands.B, float(operands.s), operands.dropout)


def _planned(names: tuple[str, ...]) -> tuple[tuple[str, ...], Runs]:
    """The adapters of a batch, and which rows take them."""
    used = tuple(dict.fromkeys(name for name in names if name != "__base__"))
    return used, Runs([used.index(name) if name in used else -1 for name in names])


# Every layer asks for the same batch.
_kept_plan = lru_cache(maxsize=16)(_planned)


class FastLinear(Fused, Linear):
    """PEFT's LoRA layer over an nn.Linear, with the same attributes, parameters and state_dict.

    `accelerate_peft` makes one by setting the class of PEFT's layer; `register` has PEFT construct it.
    Adding, switching, merging, deleting and saving adapters is still PEFT's own code.
    """


def fast_class(cls: type) -> type[Fused] | None:
    """The class with the fused forward for one of PEFT's own, or for itself; None if there is none."""
    if issubclass(cls, Fused):
        return cls if cls is FastLinear or "_library_class" in vars(cls) else None
    if cls is Linear:
        return FastLinear
    return _made_for(cls) if (cls.__module__, cls.__qualname__.rpartition(".")[2]) in _PACKED else None


def pefts_class(cls: type) -> type:
    """PEFT's own class that a fast class is made from."""
    made_from: type = vars(cls).get("_library_class", Linear)
    return made_from


def _made_for(cls: type) -> type[Fused]:
    """As FastLinear, over a class of PEFT's that exists only where its library is installed."""
    return class_over(Fused, cls, _blank, prefix="Fast", __doc__=FastLinear.__doc__)


def _blank(cls: type) -> Fused:
    made = _made_for(cls)
    return made.__new__(made)
