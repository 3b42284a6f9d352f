"""torchao's Int8Tensor and Float8Tensor: 8-bit values with scales, as the weight of an nn.Linear.

What torchao makes of x besides (dynamic activation quantization) is left out: x is multiplied as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from fastlora.formats.format import class_name
from fastlora.formats.fp8_linear import FP8
from fastlora.formats.scaled import Scaled
from fastlora.formula.operands import BaseWeight


class TorchaoScaled(Scaled):
    """A tensor subclass of torchao's with `qdata`, `scale` and a `block_size`.

    Args:
        kind: The subclass's name.
        dtypes: Those of its values.
    """

    library = "torchao"

    def __init__(self, kind: str, dtypes: tuple[torch.dtype, ...]) -> None:
        self.name, self.about = f"torchao-{kind.lower()}", f"torchao's {kind}"
        self.kind, self.dtypes = kind, dtypes

    def holds(self, module: Any) -> bool:
        """Exactly an nn.Linear whose weight is of that subclass."""
        if type(module) is not torch.nn.Linear:
            return False
        weight = module._parameters.get("weight")
        return weight is not None and class_name(weight.data) == (self.library, self.kind)

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """From the weight's inner tensors."""
        weight = module.weight
        self.checked(module, weight.qdata, weight.scale, self.dtypes)
        if getattr(weight, "act_pre_scale", None) is not None:
            raise ValueError(
                f"weight of a Linear must multiply x as it is; its {self.kind} has an act_pre_scale"
            )
        zero = getattr(weight, "zero_point", None)
        return self.scaled_base(weight.qdata, weight.scale, tuple(weight.block_size), dtype, zero)

    def values_dtype(self, module: Any) -> torch.dtype:
        """The dtype that the subclass answers for."""
        dtype: torch.dtype = module.weight.dtype
        return dtype

    def packed_bytes(self, N: int, K: int) -> int:
        """A byte for each entry, and a scale for each row."""
        return N * K + 4 * N


INT8 = TorchaoScaled("Int8Tensor", (torch.int8,))
FLOAT8 = TorchaoScaled("Float8Tensor", FP8)
