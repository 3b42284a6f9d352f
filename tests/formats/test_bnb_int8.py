"""int8 unpacked, held bit for bit to bitsandbytes."""

import pytest
import torch

from fastlora import set_backend
from fastlora.formats.registry import format_of
from fastlora.routes.dequantize import dequantize
from tests.packed import linear_int8

bnb = pytest.importorskip("bitsandbytes")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def base_of(layer, dtype=torch.float32):
    return format_of(layer).base_of(layer, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_those_that_the_library_trains_with(dtype):
    layer = linear_int8(torch.randn(37, 50))
    with torch.no_grad():
        wanted = layer(torch.eye(50, dtype=dtype)).t()
    assert torch.equal(dequantize(base_of(layer, dtype)), wanted)


def test_the_scales_are_found_before_and_after_the_first_forward():
    layer = linear_int8(torch.randn(37, 50))
    assert layer.weight.SCB is not None
    before = dequantize(base_of(layer))
    layer(torch.randn(3, 50))
    assert layer.weight.SCB is None
    assert torch.equal(dequantize(base_of(layer)), before)
    vectorwise = bnb.functional.int8_vectorwise_dequant(layer.state.CB, layer.state.SCB)
    torch.testing.assert_close(before, vectorwise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_kernel_gives_the_same_bits(dtype, poisoned):
    base = base_of(linear_int8(torch.randn(37, 50)), dtype)
    wanted = dequantize(base)
    with set_backend("triton"):
        assert torch.equal(dequantize(base), wanted)


def test_layers_that_are_not_quantized_are_refused():
    with pytest.raises(ValueError, match="it has has_fp16_weights=True"):
        base_of(bnb.nn.Linear8bitLt(50, 37))
    with pytest.raises(ValueError, match="it is not yet"):
        base_of(bnb.nn.Linear8bitLt(50, 37, has_fp16_weights=False))
