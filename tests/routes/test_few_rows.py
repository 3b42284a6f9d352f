"""Few rows over a packed W: the same bits of W, inside the product, and when it is unpacked beforehand."""

import pytest
import torch

from fastlora import set_backend
from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import EVERYTHING, BaseWeight, Operands, plain
from fastlora.layer.base_weights import frozen_weight
from fastlora.layer.quantized import QuantizedLoRALinear
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import dequantize, few_rows, fused, fused_packed
from tests.packed import (
    assert_right,
    linear_4bit,
    linear_fp8,
    linear_int8,
    linear_torchao,
    packed,
    results,
    small_inputs,
)

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
HALF = torch.float16
N, K = 70, 320


@pytest.fixture
def ways(monkeypatch):
    """A list that grows by "inside" or "beforehand" with each W that is read."""
    seen = []

    def counting(way, original):
        def counted(*args):
            seen.append(way)
            return original(*args)

        return counted

    monkeypatch.setattr(fused_packed, "few_rows", counting("inside", fused_packed.few_rows))
    beforehand = counting("beforehand", dequantize.dequantize)
    monkeypatch.setattr("fastlora.autograd.calls.dequantize", beforehand)
    return seen


def on_device(base):
    return base._replace(tensors=tuple(tensor.to(DEVICE) for tensor in base.tensors))


# Whole layers are packed, and stay, on the CPU.
on_a_cpu = pytest.mark.skipif(ON_GPU, reason="Triton's kernels are compiled for the GPU")


def zero_points():
    """torchao's int8 with zero points, as its layers have them for some configs."""
    q = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    zero = torch.randint(-9, 9, (N, 1), dtype=torch.int8)
    return BaseWeight("torchao-int8tensor", (q, torch.rand(N, 1), zero), N, K, HALF, (1, K))


LAYERS = {
    "nested": linear_4bit,
    "plain": lambda W: linear_4bit(W, nested=False, kind="fp4"),
    "blocks across rows": lambda W: linear_4bit(W, block=256),
    "short blocks": lambda W: linear_4bit(W, block=32),
    "int8": linear_int8,
    "one scale": lambda W: linear_fp8(W, block=None),
    "blocks of columns": lambda W: linear_fp8(W, block=(32, 64)),
    "float8": lambda W: linear_torchao(W, kind="Float8"),
}


@pytest.mark.parametrize("packing", [*LAYERS, "zero points"])
def test_the_weight_has_the_bits_that_it_is_unpacked_to(packing):
    if packing == "zero points":
        base = zero_points()
    else:
        layer = LAYERS[packing](torch.randn(N, K, dtype=HALF))
        base = next(one for one in FORMATS.values() if one.holds(layer)).base_of(layer, HALF)
    base = on_device(base)
    W, at = FORMATS[base.format].dequantize(base), torch.randperm(K, device=DEVICE)[:15]
    x = torch.zeros(15, K, dtype=HALF, device=DEVICE)
    x[torch.arange(15, device=DEVICE), at] = 1  # so that y is columns of W
    A, B = torch.randn(3, K, device=DEVICE), torch.randn(N, 3, device=DEVICE)
    A[:, at] = 0
    o = Operands(x, base, None, A, B, 0.5)
    with set_backend("triton"):
        assert few_rows.decision_of(o, EVERYTHING, "triton") is not None
        y, p = fused_packed.few_rows(o)
    assert torch.equal(y, W[:, at].t())
    assert not p.any()


@on_a_cpu
@pytest.mark.parametrize("format", ["bnb-4bit", "bnb-int8"])
def test_a_step_of_few_rows_is_right_and_unpacks_w_for_dx_alone(format, ways):
    inputs = random_inputs(9, 100, N, 20, dtype=HALF, adapter_dtype=torch.float32)
    layer = QuantizedLoRALinear.from_linear(packed(inputs, format), r=20)
    with set_backend("triton"):
        found = results(layer, inputs)
    assert ways == ["inside", "beforehand"]
    assert_right(found, inputs, frozen_weight(layer))


def test_the_same_entries_are_dropped_as_by_the_plain_kernel():
    layer = packed(small_inputs(HALF))
    base = on_device(FORMATS["bnb-4bit"].base_of(layer, HALF))
    shapes = torch.ones(9, 50, dtype=HALF), torch.eye(50), torch.randn(37, 50), torch.tensor([7])
    x, A, B, seed = (tensor.to(DEVICE) for tensor in shapes)
    o = Operands(x, base, None, A, B, 1.0, 0.5, seed)
    with set_backend("triton"):
        _, mask = fused_packed.few_rows(o)  # as A is the identity
        _, plains = fused.forward(o._replace(base=plain(FORMATS["bnb-4bit"].dequantize(base))))
    assert torch.equal(mask, plains)
    assert 0.3 < (mask == 2).float().mean() < 0.7
    assert ((mask == 0) | (mask == 2)).all()


@on_a_cpu
@pytest.mark.parametrize(
    ("M", "K", "dtype", "way"),
    [
        (16, 50, HALF, "inside"),
        (17, 50, HALF, "beforehand"),
        (7, 51, HALF, "beforehand"),  # a byte in two rows
        (7, 50, torch.float32, "beforehand"),
    ],
)
def test_what_is_unpacked_inside_the_product(M, K, dtype, way, ways):
    inputs = random_inputs(M, K, 5, 3, dtype=dtype, adapter_dtype=torch.float32)
    layer = QuantizedLoRALinear.from_linear(packed(inputs), r=3)
    with set_backend("triton"):
        layer(inputs.x)
    layer(inputs.x)  # torch, on a CPU
    assert ways == [way, "beforehand"]
