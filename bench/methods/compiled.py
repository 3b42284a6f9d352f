"""The separate torch ops of `unfused` under torch.compile, which fuses what lies between the products."""

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.methods.method import Layer, Method, adapted
from fastlora.reference import unfused
from tests.testing import Operands

# Each case is compiled for its own sizes; past the limit torch runs the rest uncompiled.
_MOST_CASES = 256


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """A layer that trains A and B through compiled code."""
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    compiled = _compiled()

    def apply(x: Tensor) -> Tensor:
        return compiled(x, ops.W, ops.b, A, B, ops.s, dropout=dropout, training=True)

    return Layer(apply, (A, B))


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = _MOST_CASES
    return torch.compile(unfused, dynamic=False, fullgraph=True)


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch.compile cannot run."""
    if not torch._dynamo.is_dynamo_supported():  # type: ignore[attr-defined]
        return f"torch {torch.__version__} does not compile under Python {sys.version.split()[0]}"
    return None


COMPILED = Method(
    name="compiled",
    about="the same ops under torch.compile, compiled for each case",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_absent=why_absent,
    external=True,
)
