"""nn.Linear as in full fine-tuning: one product forward, two backward, for dx and dW."""

from bench.methods.method import Layer, Method, linear_with, plain
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """A layer that trains W; it has no adapter, and so no LoRA dropout."""
    linear = linear_with(ops.W, ops.b)
    return Layer(linear, (linear.weight,))


FULL = Method(
    name="full",
    about="nn.Linear, full fine-tuning: forward, dx and dW; a bias stays frozen",
    formula=plain,
    trained=("W",),
    build=build,
    drops=False,
)
