"""Small packed layers of other libraries, and what holds LoRA on them to fp64."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import Inputs, random_inputs

FAMILY = "bnb-4bit"


def linear_4bit(
    W: Tensor,
    b: Tensor | None = None,
    *,
    kind: str = "nf4",
    nested: bool = True,
    block: int = 64,
    storage: torch.dtype = torch.uint8,
    compute_dtype: torch.dtype | None = None,
) -> nn.Linear:
    """bitsandbytes' Linear4bit that holds W [N, K] and b."""
    bnb = pytest.importorskip("bitsandbytes")
    N, K = W.shape
    options = {"quant_type": kind, "compress_statistics": nested, "quant_storage": storage}
    layer = bnb.nn.Linear4bit(K, N, bias=b is not None, compute_dtype=compute_dtype, **options)
    layer.weight = bnb.nn.Params4bit(W.clone(), requires_grad=False, blocksize=block, module=layer, **options)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    layer.support_avx512bf16_for_cpu = False  # the same on every CPU: where it is true, eval mode repacks W
    return layer.to("cpu")


def linear_int8(W: Tensor, b: Tensor | None = None) -> nn.Linear:
    """bitsandbytes' Linear8bitLt that holds W [N, K] and b."""
    bnb = pytest.importorskip("bitsandbytes")
    N, K = W.shape
    layer = bnb.nn.Linear8bitLt(K, N, bias=b is not None, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(W.clone(), requires_grad=False, has_fp16_weights=False)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    return layer.to("cpu").train()


def linear_fp8(W: Tensor, b: Tensor | None = None, *, block: tuple[int, int] | None = (16, 32)) -> nn.Linear:
    """Transformers' FP8Linear that holds W [N, K] and b; one scale for all of W where there is no block."""
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    N, K = W.shape
    layer = module.FP8Linear(K, N, block_size=block, has_bias=b is not None)
    rows, columns = (N, K) if block is None else block
    scale = torch.empty(-(-N // rows), -(-K // columns))
    q = torch.empty(N, K, dtype=torch.float8_e4m3fn)
    for i, strip in enumerate(W.float().split(rows)):
        for j, part in enumerate(strip.split(columns, dim=1)):
            scale[i, j] = part.abs().max() / 448
            q[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = (part / scale[i, j]).to(q.dtype)
    layer.weight = nn.Parameter(q, requires_grad=False)
    layer.weight_scale_inv = nn.Parameter(scale.reshape(()) if block is None else scale, requires_grad=False)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    return layer


def linear_compressed(W: Tensor, b: Tensor | None = None) -> nn.Linear:
    """Transformers' layer for fp8 of compressed-tensors, a scale for each row."""
    module = pytest.importorskip("transformers.integrations.compressed_tensors")
    fp8 = linear_fp8(W, b, block=(1, W.shape[1]))
    layer = module.CompressedTensorsFP8Linear(W.shape[1], W.shape[0], has_bias=b is not None)
    layer.weight, layer.bias = fp8.weight, fp8.bias
    layer.weight_scale = nn.Parameter(fp8.weight_scale_inv.reshape(1, -1), requires_grad=False)
    return layer


def linear_torchao(W: Tensor, b: Tensor | None = None, *, kind: str = "Int8") -> nn.Linear:
    """An nn.Linear whose weight torchao has quantized."""
    quantization = pytest.importorskip("torchao.quantization")
    N, K = W.shape
    layer = nn.Linear(K, N, bias=b is not None, dtype=W.dtype)
    with torch.no_grad():
        layer.weight.copy_(W)
        if b is not None:
            layer.bias.copy_(b)
    options = {"version": 2} if kind == "Int8" else {}
    quantization.quantize_(layer, getattr(quantization, f"{kind}WeightOnlyConfig")(**options))
    return layer


def linear_fp4(
    W: Tensor, b: Tensor | None = None, *, kind: str = "NVFP4", swizzled: bool = True
) -> nn.Linear:
    """An nn.Linear whose weight is torchao's NVFP4Tensor or its MXTensor in 4 bits."""
    pytest.importorskip("torchao")
    formats = "torchao.prototype.mx_formats"
    layer = nn.Linear(W.shape[1], W.shape[0], bias=b is not None, dtype=W.dtype)
    if kind == "NVFP4":
        module = importlib.import_module(f"{formats}.nvfp4_tensor")
        whole = module.per_tensor_amax_to_scale(W.abs().max())
        q = module.NVFP4Tensor.to_nvfp4(W, per_tensor_scale=whole, is_swizzled_scales=swizzled)
    else:
        module = importlib.import_module(f"{formats}.mx_tensor")
        q = module.MXTensor.to_mx(W, torch.float4_e2m1fn_x2, 32, is_swizzled_scales=swizzled)
    layer.weight = nn.Parameter(q, requires_grad=False)
    if b is not None:
        layer.bias = nn.Parameter(b.clone())
    return layer


def linear_hqq(
    W: Tensor, b: Tensor | None = None, *, compute_dtype: torch.dtype | None = None, **options: Any
) -> nn.Module:
    """hqq's HQQLinear that holds W [N, K] and b; one group a row, unless `options` say otherwise."""
    hqq = pytest.importorskip("hqq.core.quantize")
    plain = nn.Linear(W.shape[1], W.shape[0], bias=b is not None, dtype=W.dtype)
    with torch.no_grad():
        plain.weight.copy_(W)
        if b is not None:
            plain.bias.copy_(b)
    weights = {"nbits": 8, "group_size": None, "axis": 1, "channel_wise": True, "optimize": False, **options}
    weights = {"round_zero": False, "view_as_float": False, **weights}
    config = {"weight_quant_params": weights, "scale_quant_params": None, "zero_quant_params": None}
    config["offload_meta"] = False
    return hqq.HQQLinear(
        plain.requires_grad_(False), config, compute_dtype=compute_dtype or W.dtype, device="cpu"
    )


# Those whose own forward runs on a CPU.
RUNS = ("bnb-4bit", "bnb-int8", "hqq", "torchao-nvfp4", "torchao-int8tensor", "torchao-float8tensor")

MAKERS: dict[str, Callable[..., nn.Module]] = {
    "bnb-4bit": linear_4bit,
    "bnb-int8": linear_int8,
    "hqq": linear_hqq,
    "fp8": linear_fp8,
    "fp8 of compressed-tensors": linear_compressed,
    "torchao-int8tensor": linear_torchao,
    "torchao-float8tensor": functools.partial(linear_torchao, kind="Float8"),
    "torchao-nvfp4": linear_fp4,
    "torchao-mxfp4": functools.partial(linear_fp4, kind="MXFP4"),
}


def packed(inputs: Inputs, format: str = FAMILY, **options: Any) -> nn.Module:
    """A packed layer with the inputs' W and b."""
    return MAKERS[format](inputs.W, inputs.b, **options)


def net(
    K: int = 64, hidden: int = 32, N: int = 16, dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    """Two 4-bit layers "0" and "2" around a ReLU."""
    sizes = ((K, hidden), (hidden, N))
    first, last = (linear_4bit(torch.randn(n, k, dtype=dtype) * k**-0.5, **options) for k, n in sizes)
    return nn.Sequential(first, nn.ReLU(), last)


def results(layer: Any, inputs: Inputs) -> dict[str, Tensor]:
    """y, dx, dA and dB of a LoRA layer of ours with the inputs' A and B, for their x and dy."""
    with torch.no_grad():
        layer.lora_A.copy_(inputs.A)
        layer.lora_B.copy_(inputs.B)
    layer.alpha = inputs.s * layer.r
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    dx, dA, dB = torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), inputs.dy)
    return {"y": y.detach(), "dx": dx, "dA": dA, "dB": dB}


def assert_right(found: dict[str, Tensor], inputs: Inputs, W: Tensor) -> None:
    """Hold y and the gradients to fp64 with the unpacked W [N, K]."""
    whole = Inputs(inputs.x, W.to(inputs.x.dtype), inputs.b, inputs.A, inputs.B, inputs.s, inputs.dy)
    truth, torchs = oracle(whole), gradients(whole)
    for name, value in found.items():
        assert_within_budget(name, value, torchs[name], truth[name])


def small_inputs(dtype: torch.dtype = torch.float32, format: str = FAMILY, **options: Any) -> Inputs:
    """x [7, 50], W [37, 50], r = 3, with fp32 adapters: K is no multiple of a block, where it need not be."""
    K = 64 if "fp4" in format else 50
    return random_inputs(7, K, 37, 3, dtype=dtype, adapter_dtype=torch.float32, **options)
