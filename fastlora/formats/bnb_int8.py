"""bitsandbytes' int8: W_nk = q_nk (a_n / 127), a scale for each row.

The library's own forward on a GPU rounds x to 8 bits too; here x is multiplied as it is by the W above, as
the library itself does in training on a CPU.

Source: Dettmers et al., "LLM.int8()", arXiv 2208.07339; `Linear8bitLt` of bitsandbytes 0.50.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlora.formats.format import class_name
from fastlora.formats.scaled import Scaled
from fastlora.formula.operands import BaseWeight


class BnbInt8(Scaled):
    """bitsandbytes' Linear8bitLt; q and a lie on the weight before its first forward, on `state` after."""

    name = "bnb-int8"
    about = "bitsandbytes int8"
    library = "bitsandbytes"
    factor = 1 / 127
    keeps_dtype = False

    def holds(self, module: object) -> bool:
        """Exactly a Linear8bitLt."""
        return class_name(module) == (self.library, "Linear8bitLt")

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """From `module.state`, or from the weight."""
        weight, state = module.weight, module.state
        if state.has_fp16_weights:
            raise ValueError(
                "weight of a Linear8bitLt must be quantized; it has has_fp16_weights=True, which keeps it in "
                "16 bits (load the model with has_fp16_weights=False, as Transformers does)"
            )
        q: Tensor = weight.data if state.CB is None else state.CB
        scale = weight.SCB if state.SCB is None else state.SCB
        if scale is None:
            raise ValueError(
                "weight of a Linear8bitLt must be quantized; it is not yet (move the model to its device "
                "first: bitsandbytes quantizes in .to)"
            )
        self.checked(module, q, scale, (torch.int8,))
        return self.scaled_base(q, scale, (1, q.shape[1]), dtype)

    def values_dtype(self, module: Any) -> torch.dtype:
        """The bias's; else fp16, from which the library quantizes whatever it was given."""
        return torch.float16 if module.bias is None else module.bias.dtype

    def packed_bytes(self, N: int, K: int) -> int:
        """A byte for each entry, and a scale for each row."""
        return N * K + 4 * N
