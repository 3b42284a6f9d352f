"""fastlora: FusedLoRALinear, on the path that `fastlora.set_backend` chooses."""

from dataclasses import replace

import torch
from torch import nn

from bench.methods.method import Layer, Method, adapted, linear_with
from fastlora import BackendError, FusedLoRALinear
from fastlora.backend import choose_path
from tests.testing import Operands


def build(ops: Operands, dropout: float = 0.0) -> Layer:
    """The layer a user gets from `from_linear`, with the operands' A and B."""
    r = ops.A.shape[0]
    layer = FusedLoRALinear.from_linear(
        linear_with(ops.W, ops.b), r=r, alpha=ops.s * r, dropout=dropout, adapter_dtype=ops.A.dtype
    )
    layer.lora_A, layer.lora_B = nn.Parameter(ops.A), nn.Parameter(ops.B)
    return Layer(layer, (layer.lora_A, layer.lora_B))


def build_undropped(ops: Operands, dropout: float = 0.0) -> Layer:
    """The same layer without dropout, whatever the case has."""
    return build(ops)


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the chosen backend cannot run there."""
    try:
        choose_path(device, dtype)
    except BackendError as error:
        return str(error)
    return None


FASTLORA = Method(
    name="fastlora",
    about="FusedLoRALinear",
    formula=adapted,
    trained=("A", "B"),
    build=build,
    why_absent=why_absent,
)

UNDROPPED = replace(
    FASTLORA,
    name="fastlora-p0",
    about="FusedLoRALinear without dropout, beside it in the cases with dropout",
    build=build_undropped,
    drops=False,
)
