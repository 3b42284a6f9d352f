"""LoRA in weight space, as tutorials write it: W + s B A is formed at each forward pass.

Through `torch.nn.utils.parametrize`, with the library's own reference of that way.
"""

from torch import nn

from bench.cases import Case
from bench.methods.method import Layer, Method, adapted, linear_with
from fastlora.reference_layers import LoRAParametrization
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """An nn.Linear whose weight is parametrized."""
    linear = linear_with(ops.W, ops.b)
    r = ops.A.shape[0]
    lora = LoRAParametrization.register(linear, r=r, alpha=ops.s * r)
    lora.lora_A, lora.lora_B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    return Layer(linear, (lora.lora_A, lora.lora_B))


def why_not(case: Case) -> str | None:
    """Why a case is not for it."""
    if case.dropout:
        return "the weight is formed before x is seen: there is nothing to drop"
    if case.adapter_dtype != case.dtype:
        return "the sum of W and a wider update is of another dtype than x"
    return None


PARAMETRIZED = Method(
    name="parametrized",
    about="LoRA in weight space: nn.Linear with W + s B A formed at each forward",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_not=why_not,
)
