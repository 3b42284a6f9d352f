"""One case: a layer's shape, dtypes and options, and the inputs that stand for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch

from bench.methods.method import Method, Update
from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.measuring.inputs import SCALE, Inputs, random_inputs


class Case(NamedTuple):
    """One layer and batch: x [M, K], W [N, K], rank r; A and B in `adapter_dtype`, the rest in `dtype`.

    `base` names how W is packed (see layer.py), "" where it is plain; a packed layer has no bias.
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
        M, K, N, r, dtype, adapter_dtype, _, bias, _ = self
        inputs = random_inputs(M, K, N, r, dtype=dtype, adapter_dtype=adapter_dtype, bias=bias, device=device)
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
        return f"M={self.M} {self.K}->{self.N} r={self.r} {options_in_words(self.labels())}"


_SHORT: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def options_in_words(labels: Mapping[str, Any]) -> str:
    """What else the labels say than the shape, such as "bf16, adapters fp32, dropout 0.1, bias, base nf4"."""
    dtypes = dict.fromkeys(_SHORT.get(labels[name], labels[name]) for name in ("dtype", "adapter_dtype"))
    dropout, base = labels["dropout"], labels["base"]
    parts = [", adapters ".join(dtypes), f"dropout {dropout:g}" if dropout else ""]
    parts += ["bias" if labels["bias"] else "", f"base {base}" if base else ""]
    return ", ".join(filter(None, parts))


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
