"""nn.Linear as in full fine-tuning: one product forward, two backward, for dx and dW."""

from bench.methods.method import Layer, Method, linear_with, plain
from tests.testing import Operands


def build(ops: Operands) -> Layer:
    """A layer that trains W."""
    linear = linear_with(ops.W)
    return Layer(linear, (linear.weight,))


FULL = Method(
    name="full",
    about="nn.Linear, full fine-tuning: forward, dx and dW",
    formula=plain,
    trained=("W",),
    build=build,
)
