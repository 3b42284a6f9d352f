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
# By words in the name of a class or of its package; the first that is there decides.
_INSTEAD: Final = (
    (("hqq.backends",), _HQQ),
    (("gptq", "awq", "marlin", "exllama"), _INFERENCE),
    (("int4",), _INT4),
)


def instead_of(module: nn.Module) -> str:
    """What to use instead of a refused format, to follow on its name; "" where nothing is known."""
    weight = module._parameters.get("weight")
    classes = (type(module), *(() if weight is None else (type(weight), type(weight.data))))
    words = " ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes).lower()
    return next((f": {advice}" for names, advice in _INSTEAD if any(name in words for name in names)), "")
