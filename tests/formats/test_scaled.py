"""fp8 and torchao's 8 bits unpacked, held to the libraries."""

import pytest
import torch
from torch import nn

from fastlora import set_backend
from fastlora.formats.registry import format_of
from fastlora.routes.dequantize import dequantize
from tests.packed import linear_compressed, linear_fp8, linear_torchao

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCKS = [(16, 32), (1, 50), None]


def base_of(layer, dtype=torch.float32):
    return format_of(layer).base_of(layer, dtype)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_fp8_is_transformers_product_rounded_once(block):
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    layer = linear_fp8(torch.randn(37, 50), block=block)
    wanted = module._dequantize_fp8_weight(layer.weight, layer.weight_scale_inv, block, torch.float32)
    for dtype in DTYPES:
        assert torch.equal(dequantize(base_of(layer, dtype)), wanted.to(dtype))


def test_fp8_of_compressed_tensors_has_a_scale_for_each_row():
    W = torch.randn(37, 50)
    layer, rows = linear_compressed(W), linear_fp8(W, block=(1, 50))
    for dtype in DTYPES:
        assert torch.equal(dequantize(base_of(layer, dtype)), dequantize(base_of(rows, dtype)))


@pytest.mark.parametrize("kind", ["Int8", "Float8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_torchaos(kind, dtype):
    layer = linear_torchao(torch.randn(37, 50, dtype=torch.bfloat16), kind=kind)
    assert torch.equal(dequantize(base_of(layer, dtype)), layer.weight.dequantize(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        *(lambda block=block: linear_fp8(torch.randn(37, 50), block=block) for block in BLOCKS),
        lambda: linear_torchao(torch.randn(37, 50)),
    ],
    ids=["blocks", "rows", "tensor", "torchao"],
)
def test_the_kernel_gives_the_same_bits(layer, dtype, poisoned):
    base = base_of(layer(), dtype)
    wanted = dequantize(base)
    with set_backend("triton"):
        assert torch.equal(dequantize(base), wanted)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of infinity
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_the_kernel_reads_every_byte_of_fp8(dtype):
    layer = linear_fp8(torch.randn(16, 16), block=None)
    layer.weight.data = torch.arange(256, dtype=torch.uint8).view(dtype).view(16, 16)
    base = base_of(layer)
    wanted = dequantize(base)
    with set_backend("triton"):
        torch.testing.assert_close(dequantize(base), wanted, rtol=0, atol=0, equal_nan=True)


def test_zero_points_are_subtracted_before_the_product():
    layer = linear_torchao(torch.randn(37, 50))
    layer.weight.zero_point.copy_(torch.arange(37)[:, None])
    base = base_of(layer)
    wanted = layer.weight.dequantize(torch.float32)
    assert torch.equal(dequantize(base), wanted)
    with set_backend("triton"):
        assert torch.equal(dequantize(base), wanted)


def test_a_decompressed_weight_beside_a_left_over_scale_is_refused():
    layer = linear_fp8(torch.randn(37, 50))
    layer.weight = nn.Parameter(torch.randn(37, 50, dtype=torch.bfloat16))
    with pytest.raises(
        ValueError, match=r"must be \[N, K\] = \[37, 50\] in torch.float8_e4m3fn or .* in torch.bfloat16"
    ):
        base_of(layer)


def test_a_weight_that_scales_x_first_is_refused():
    layer = linear_torchao(torch.randn(37, 50))
    layer.weight.act_pre_scale = torch.ones(50)
    with pytest.raises(ValueError, match="its Int8Tensor has an act_pre_scale"):
        base_of(layer)
