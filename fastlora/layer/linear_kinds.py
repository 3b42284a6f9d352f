"""Recognizes linear maps that are not an nn.Linear, such as quantized layers, so errors can name them."""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.formats.unsupported import instead_of, is_compressed
from fastlora.layer.base_weights import packed_format
from fastlora.layer.conv1d import is_conv1d

# nn.MultiheadAttention uses this layer's weight without calling the layer. No LoRA library adapts it.
_LEFT_OUT: Final = nn.modules.linear.NonDynamicallyQuantizableLinear

# Packages and classes of quantized linear layers; few of them are subclasses of nn.Linear.
_QUANTIZING: Final = frozenset(
    (
        *(
            "aqlm",
            "auto_gptq",
            "awq",
            "bitsandbytes",
            "eetq",
            "flute",
            "gptqmodel",
            "hqq",
            "optimum",
            "quanto",
        ),
        *("compressed_tensors", "modelopt", "quark", "spqr_quant", "torchao", "vptq", "fp_quant"),
    )
)
_QUANTIZED: Final = (
    r"Linear(4|8)bit|Linear(FP|NF)4|(HQQ|Quant|QuantLinear|WQ|Q|Eetq|EETQ|Bit|FP8|Fp8|FP4|MXFP4|Higgs|Vptq|VQuant"
    r"|SpQR|Spqr)(ized)?Linear"
)
# Tensor classes that do not encode their values: plain ones, shards, and stand-ins without values.
_PLAIN_TENSORS: Final = frozenset(("Parameter", "DTensor", "FakeTensor", "FunctionalTensor"))


def other_linear_kind(name: str, module: nn.Module) -> str | None:
    """A phrase saying what kind of linear map, other than nn.Linear, a module holds; None if none is known.

    LoRA cannot be added to these. Known are subclasses of the Conv1D of Transformers' GPT-2; experts stored
    as slices of 3-D parameters, as in Transformers' Mixtral or Qwen3-MoE; quantized layers in formats that
    fastlora/formats does not have, as of GPTQ or AWQ; and the layers of PEFT.

    Args:
        name: The name that the module is registered under.
        module: Any module.
    """
    kind = type(module).__name__
    if is_pefts(module):
        return f"{kind} of PEFT, which has an adapter itself"
    if not is_conv1d(module) and any(
        (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for cls in type(module).__mro__
    ):
        return f"{kind}, a subclass of Conv1D, which may compute something else"
    if packed_format(module) is not None:
        return None
    if is_compressed(module) or _is_quantized(module):
        return f"{kind}, which is quantized{instead_of(module)}"
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) and weight is not None and (why := odd_tensor(weight)):
        return f"{kind}, whose weight is {why}"
    stacked = [
        f"{own} {list(parameter.shape)}"
        for own, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3
    ]
    # Other 3-D parameters are not linear maps: position embeddings, the weight of a convolution.
    if stacked and "expert" in f"{name.rpartition('.')[2]} {kind}".lower():
        return f"{kind}, whose experts are 3-D parameters ({', '.join(stacked)}){instead_of(module)}"
    return None


def is_pefts(module: nn.Module) -> bool:
    """Whether the module is one of PEFT's layers, which wraps one of the model's."""
    return any(
        cls.__name__ in ("BaseTunerLayer", "AuxiliaryTrainingWrapper") and cls.__module__.startswith("peft.")
        for cls in type(module).__mro__
    )


def is_left_out_by_all(module: nn.Module) -> bool:
    """Whether the module is torch's subclass of nn.Linear that no LoRA library adapts."""
    return isinstance(module, _LEFT_OUT)


def odd_tensor(tensor: Tensor) -> str | None:
    """A phrase saying what a weight is if it is not a plain dense tensor; None if it is.

    Quantization puts tensor subclasses into an nn.Linear, and sparsity other layouts.
    """
    cls = type(tensor.data)
    known = cls.__name__ in _PLAIN_TENSORS and cls.__module__.startswith("torch.")
    if cls is not Tensor and not known:
        return f"a {cls.__module__}.{cls.__qualname__}, as quantization makes them, and no plain tensor"
    if tensor.layout is not torch.strided:
        return f"in the layout {tensor.layout}"
    if tensor.dtype not in arguments.DTYPES:
        return f"in {tensor.dtype}, not in one of {', '.join(map(str, arguments.DTYPES))}"
    return None


def _is_quantized(module: nn.Module) -> bool:
    for cls in type(module).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in _QUANTIZING and "Linear" in cls.__name__:
            return True
        if cls.__module__.startswith("torch.ao.nn.quantized") and "Linear" in cls.__name__:
            return True
        if package != "torch" and re.search(_QUANTIZED, cls.__name__):
            return True
    return False
