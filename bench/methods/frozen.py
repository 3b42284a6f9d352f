"""nn.Linear with its weight frozen: one product forward, one backward for dx. The least a layer can do."""

from bench.methods.method import Layer, Method, linear_with, plain
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """A layer without anything to train, and so without LoRA dropout."""
    return Layer(linear_with(ops.W, ops.b).requires_grad_(False), ())


FROZEN = Method(
    name="frozen",
    about="nn.Linear, frozen: forward, and dx alone backward",
    formula=plain,
    trained=(),
    build=build,
    drops=False,
)
