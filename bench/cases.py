"""One case: a layer's shape, dtypes and options, and the inputs that stand for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bench.methods.method import Method, Update
from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.measuring.inputs import SCALE, Inputs, random_inputs


class Case(NamedTuple):
    """One layer and batch: x [M, K], W [N, K], rank r; A and B in `adapter_dtype`, the rest in `dtype`.

    `base` names how W is packed, "" where it is plain (see packing.py).
    """

    M: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype
    dropout: float = 0.0
    bias: bool = False
    base: str = ""

    def inputs(self, device: torch.device) -> Inputs:
        """Fresh random inputs, none of them zero, whose x takes a gradient."""
        kinds = {"dtype": self.dtype, "adapter_dtype": self.adapter_dtype}
        inputs = random_inputs(*self[:4], **kinds, bias=self.bias, device=device)
        inputs.x.requires_grad_()
        return inputs

    @property
    def update(self) -> Update:
        """What LoRA adds to the layer; the scale is that of the random inputs."""
        return Update(self.r, SCALE * self.r, self.dropout, self.adapter_dtype)

    def why_not(self, method: Method) -> str | None:
        """Why a method is left out of the case; None where it takes it."""
        return method.why_not((self.K, self.N), self.dtype, self.update)

    @property
    def problem(self) -> Problem:
        """Its shapes and dtypes."""
        return Problem(*self[:6])

    def labels(self) -> dict[str, Any]:
        """What a result of this case is filed under."""
        return {
            "dtype": dtype_name(self.dtype),
            "adapter_dtype": dtype_name(self.adapter_dtype),
            "shape": {"M": self.M, "K": self.K, "N": self.N, "r": self.r},
            "dropout": self.dropout,
            "bias": self.bias,
            "base": self.base,
        }

    def __str__(self) -> str:
        words = [f"{dtype_name(self.dtype)}, adapters {dtype_name(self.adapter_dtype)}"]
        words += [f"dropout {self.dropout:g}"] if self.dropout else []
        words += ["bias"] if self.bias else []
        words += [f"base {self.base}"] if self.base else []
        return f"M={self.M} {self.K}->{self.N} r={self.r} " + ", ".join(words)


class Measurement(NamedTuple):
    """What is measured of a case.

    Attributes:
        modes: Ways to time: "eager" and "graph"; "dry-run" marks times that mean nothing.
        launches: Whether the kernels of a call are counted as well.
        seconds: Rounds are taken for about so long, in each phase and mode, within the effort's bounds.
    """

    case: Case
    methods: tuple[str, ...]
    modes: tuple[str, ...]
    launches: bool = False
    seconds: float = 0.25
