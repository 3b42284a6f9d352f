"""NVFP4 and MXFP4: the same bits as torchao, with both layouts of the scales; on the kernel's path too."""

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, apply_lora, set_backend
from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight
from fastlora.routes.dequantize import dequantize
from tests.packed import linear_fp4

# Numpy, by which the interpreter rounds, warns of numbers that are infinite or none in fp16.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
KINDS = ("NVFP4", "MXFP4")


def format_of(kind):
    return FORMATS[f"torchao-{kind.lower()}"]


def of_every_code(kind, swizzled, dtype):
    """A weight of torchao's with all codes and scales but infinities, which the product makes of some."""
    layer = linear_fp4(torch.randn(130, 320, dtype=dtype), kind=kind, swizzled=swizzled)
    for name in ("qdata", "scale"):
        inner = getattr(layer.weight.data, name).view(torch.uint8)
        inner.copy_((torch.arange(inner.numel()) * 7 % 256).to(torch.uint8).view(inner.shape))
    return layer


def same(left, right):
    """Bit for bit, with every NaN alike."""
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(), right.nan_to_num())


@pytest.mark.parametrize("swizzled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_w_has_torchaos_bits(kind, swizzled):
    layer = of_every_code(kind, swizzled, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        base = format_of(kind).base_of(layer, dtype)
        theirs = layer.weight.dequantize(dtype)
        assert same(dequantize(base), theirs)
        if dtype != torch.bfloat16:  # which the interpreter cuts off
            with set_backend("triton"):
                assert same(dequantize(base), theirs)


def test_a_weight_without_a_scale_for_all_of_it_has_torchaos_bits():
    layer = linear_fp4(torch.randn(32, 64))
    layer.weight.per_tensor_scale = None
    base = format_of("NVFP4").base_of(layer, torch.float32)
    assert len(base.tensors) == 2
    assert torch.equal(dequantize(base), layer.weight.dequantize())
    with set_backend("triton"):
        assert torch.equal(dequantize(base), layer.weight.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_gives_the_hosts_bits_without_the_library(kind):
    block = format_of(kind).block
    q = torch.randint(256, (130, 160), dtype=torch.uint8)
    scale = torch.randint(64, 160, (64, -(-80 // block) * 16), dtype=torch.uint8)
    tensors = (q, scale) if kind == "MXFP4" else (q, scale, torch.tensor(0.3))
    base = BaseWeight(format_of(kind).name, tensors, 130, 320, torch.float16, (block, 1))
    with set_backend("triton"):
        unpacked = dequantize(base)
    assert same(unpacked, dequantize(base))


def test_what_is_not_in_this_format_is_refused_by_name():
    formats = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    layer = nn.Linear(64, 32, bias=False)
    q = formats.MXTensor.to_mx(layer.weight.detach(), torch.float8_e4m3fn, 32)
    layer.weight = nn.Parameter(q, requires_grad=False)
    with pytest.raises(ValueError, match=r"must be in 4 bits.*float8_e4m3fn \(use torchao's Float8Weight"):
        apply_lora(nn.Sequential(layer), LoRAConfig(r=2))
    layer = linear_fp4(torch.randn(32, 64))
    layer.weight.is_swizzled_scales = False
    with pytest.raises(ValueError, match=r"scales of a Linear must be 128 for its 32 x 4 blocks; it has 512"):
        apply_lora(nn.Sequential(layer), LoRAConfig(r=2))
    layer.in_features = 128
    with pytest.raises(ValueError, match=r"the shape \[N, K / 2\].*\(\[32, 64\], 16, .*in \(\[32, 32\]"):
        apply_lora(nn.Sequential(layer), LoRAConfig(r=2))
