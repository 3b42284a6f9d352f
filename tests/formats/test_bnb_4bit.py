"""NF4 and FP4 unpacked, held bit for bit to bitsandbytes."""

import sys

import pytest
import torch

from fastlora import set_backend
from fastlora.formats.registry import FORMATS, format_of
from fastlora.routes.dequantize import dequantize
from tests.packed import linear_4bit, net

functional = pytest.importorskip("bitsandbytes").functional

exhaustive = pytest.mark.exhaustive
# Blocks that cross rows, a single row, and entries that end in the middle of a byte.
SHAPES = [(37, 100), (3, 5), *(pytest.param(s, marks=exhaustive) for s in ((96, 256), (50, 66), (1, 64)))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def library(layer, dtype):
    """W as the library unpacks it, to any dtype, from the state that the layer keeps."""
    state = layer.weight.quant_state
    state.dtype, before = dtype, state.dtype
    try:
        return functional.dequantize_4bit(layer.weight.data, state)
    finally:
        state.dtype = before


def base_of(layer, dtype):
    return format_of(layer).base_of(layer, dtype)


@pytest.mark.parametrize(
    "block", [64, pytest.param(32, marks=exhaustive), pytest.param(256, marks=exhaustive)]
)
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_are_bitsandbytes(shape, kind, nested, storage, block, monkeypatch):
    if storage is not torch.uint8 and shape[0] * shape[1] % 4:
        pytest.skip("bitsandbytes stores whole elements of bf16")
    layer = linear_4bit(torch.randn(shape), kind=kind, nested=nested, block=block, storage=storage)
    for dtype in DTYPES:
        base, wanted = base_of(layer, dtype), library(layer, dtype)
        assert torch.equal(dequantize(base), wanted)
        with monkeypatch.context() as patch:  # by tables alone, as on a device without the library's kernel
            patch.delitem(sys.modules, "bitsandbytes")
            assert torch.equal(dequantize(base), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("fp4", False)])
@pytest.mark.parametrize("shape", [(37, 101), (96, 256)], ids=str)
def test_the_kernel_gives_the_same_bits(shape, kind, nested, dtype, poisoned):
    layer = linear_4bit(torch.randn(shape), kind=kind, nested=nested)
    base = base_of(layer, dtype)
    wanted = dequantize(base)
    with set_backend("triton"):
        assert torch.equal(dequantize(base), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_block_that_crosses_rows_scales_its_own_entries(dtype):
    """The library's kernel for AVX512 takes another block's scale for some rows of 16, 48, 80 ... entries."""
    W = torch.randn(64, 80).to(dtype)
    base = base_of(linear_4bit(W, nested=False), dtype)
    packed, code, scales = base.tensors
    nibbles = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()
    wanted = code[nibbles.long()].view(-1, 64) * scales[:, None]
    assert torch.equal(dequantize(base), wanted.view(64, 80).to(dtype))


def test_a_wide_dtype_takes_the_tables():
    layer = linear_4bit(torch.randn(37, 100))
    W = dequantize(base_of(layer, torch.float64))
    assert W.dtype == torch.float64
    assert torch.equal(W.float(), library(layer, torch.float32))


def test_default_bytes_are_those_of_the_layers_that_loaders_make():
    layer = net()[0]
    base = base_of(layer, torch.float32)
    held = sum(tensor.nbytes for tensor in base.tensors)
    assert FORMATS["bnb-4bit"].packed_bytes(base.N, base.K) == held


def test_a_layer_that_is_not_packed_yet_is_refused():
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 32)
    with pytest.raises(ValueError, match=r"weight of a Linear4bit must be quantized; it is not yet"):
        base_of(layer, torch.float32)


def test_a_weight_in_the_cpus_inference_layout_is_refused_by_name():
    layer = linear_4bit(torch.randn(32, 64))
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(
        ValueError, match=r"it has run in eval mode on this CPU, for which bitsandbytes repacks"
    ):
        base_of(layer, torch.float32)


def test_a_state_that_only_the_module_kept_is_found():
    layer = linear_4bit(torch.randn(32, 64))
    wanted = library(layer, torch.float32)
    layer.quant_state, layer.weight.quant_state = layer.weight.quant_state, None  # as FSDP leaves it
    assert torch.equal(dequantize(base_of(layer, torch.float32)), wanted)


def test_a_state_of_another_shape_is_refused():
    layer = linear_4bit(torch.randn(32, 64))
    layer.in_features = 60
    with pytest.raises(ValueError, match=r"must be \[N, K\] = \[32, 60\]; its quant_state says \[32, 64\]"):
        base_of(layer, torch.float32)
