"""peft.tuners.lora.Linear with a fused forward, used if it computes exactly what PEFT's would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlora.autograd.function import lora_linear
from fastlora.autograd.mixed import mixed_lora_linear
from fastlora.formula.grouped import Projection
from fastlora.formula.runs import Runs
from fastlora.integrations.peft_package import Linear
from fastlora.integrations.peft_rules import Operands, mixed_operands_of, operands_of, why_not_fused
from fastlora.layer import groups, sharing
from fastlora.layer.groups import Membership
from fastlora.routes.mixed import Factors

FUSED = "fused"
# What FastLinear adds to the attributes of PEFT's layer.
COUNTS = "forward_counts"
ADDED = (COUNTS, groups.MEMBERSHIP)


class FastLinear(Linear):
    """PEFT's LoRA layer over an nn.Linear, with the same attributes, parameters and state_dict.

    `accelerate_peft` makes one by setting the class of PEFT's layer; `register` has PEFT construct it.
    Adding, switching, merging, deleting and saving adapters is still PEFT's own code.

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
            self._count(FUSED)
            return taken
        operands = operands_of(self)
        if isinstance(operands, str):
            return self._stock_forward(operands, x, *args, **kwargs)
        obstacle = why_not_fused(operands, x, args, kwargs)
        if obstacle is not None:
            return self._stock_forward(obstacle, x, *args, **kwargs)
        self._count(FUSED)
        W, b, A, B, s, dropout = operands
        if isinstance(s, Tensor):
            # s is a tensor and is multiplied into B. As a float it would need a device synchronization and
            # could get no gradient.
            B, s = B * s, 1.0
        return lora_linear(x, W, b, A, B, s, dropout=dropout)

    def _projection(self, x: Tensor) -> Projection | str:
        """What the layer computes for x, for its group; or why it must compute alone."""
        operands = operands_of(self)
        if isinstance(operands, str):
            return operands
        if (obstacle := why_not_fused(operands, x, (), {})) is not None:
            return obstacle
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
        found = mixed_operands_of(self, used)
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
        self._count(FUSED)
        W, b = next(iter(found.values()))[:2]
        factors = [_factors(found[name]) if name in found else None for name in used]
        return mixed_lora_linear(x, W, b, runs, factors)

    def _stock_forward(self, why: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._count(why)
        return super().forward(x, *args, **kwargs)

    def _count(self, way: str) -> None:
        # Not when compiled: the counter would become a guard, and each count would cause a recompilation.
        if not torch.compiler.is_compiling():
            vars(self).setdefault(COUNTS, Counter())[way] += 1


def _factors(operands: Operands) -> Factors:
    return Factors(operands.A, operands.B, float(operands.s), operands.dropout)


def _planned(names: tuple[str, ...]) -> tuple[tuple[str, ...], Runs]:
    """The adapters of a batch, and which rows take them."""
    used = tuple(dict.fromkeys(name for name in names if name != "__base__"))
    return used, Runs([used.index(name) if name in used else -1 for name in names])


# Every layer asks for the same batch.
_kept_plan = lru_cache(maxsize=16)(_planned)
