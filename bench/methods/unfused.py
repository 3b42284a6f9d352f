"""LoRA as most libraries write it: separate torch ops, differentiated by autograd."""

from torch import Tensor, nn

from bench.methods.method import Layer, Method, adapted
from fastlora.reference import unfused
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """A layer that trains A and B through autograd."""
    A, B = nn.Parameter(ops.A), nn.Parameter(ops.B)

    def apply(x: Tensor) -> Tensor:
        return unfused(x, ops.W, ops.b, A, B, ops.s, dropout=dropout, training=True)

    return Layer(apply, (A, B))


UNFUSED = Method(
    name="unfused",
    about="LoRA in separate torch ops under autograd; x is converted to the adapters' dtype, as PEFT does",
    formula=adapted,
    trained=("A", "B"),
    build=build,
)
