"""Packed formats that are refused, and what to use in their place."""

from __future__ import annotations

from typing import Final

from torch import nn

_NF4: Final = "NF4 by BitsAndBytesConfig(load_in_4bit=True)"
_INFERENCE: Final = f"it is packed for inference, with W transposed; load the unpacked model, or its {_NF4}"
_INT4: Final = (
    f"torchao's int4 has no packing that unpacks on every device; use {_NF4}, or torchao's "
    "Int8WeightOnlyConfig"
)
_HQQ: Final = "it is packed for inference; apply LoRA to hqq's HQQLinear, before prepare_for_inference"
_MXFP4: Final = "its kernels are for inference; load it with Mxfp4Config(dequantize=True)"
_NVFP4: Final = (
    f"its kernel is for inference; load the unpacked model, or its {_NF4}, or torchao's NVFP4WeightOnlyConfig"
)
_COMPRESSED: Final = (
    "compressed-tensors unpacks it for good before its first forward; load it unpacked, with "
    "CompressedTensorsConfig(dequantize=True)"
)
# By words in the name of a class or of its package; the first that is there decides.
_INSTEAD: Final = (
    (("hqq.backends",), _HQQ),
    (("gptq", "awq", "marlin", "exllama"), _INFERENCE),
    (("int4",), _INT4),
    (("mxfp4gptoss",), _MXFP4),
    (("nvfp4linear",), _NVFP4),
)


def instead_of(module: nn.Module) -> str:
    """What to use instead of a refused format, to follow on its name; "" where nothing is known."""
    if is_compressed(module):
        return f": {_COMPRESSED}"
    weight = module._parameters.get("weight")
    classes = (type(module), *(() if weight is None else (type(weight), type(weight.data))))
    words = " ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes).lower()
    return next((f": {advice}" for names, advice in _INSTEAD if any(name in words for name in names)), "")


def is_compressed(module: nn.Module) -> bool:
    """Whether compressed-tensors has packed the weight, in any of its packed formats."""
    return "weight_packed" in module._parameters
