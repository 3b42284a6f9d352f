"""fp8 in blocks, rows or one tensor: W_nk = q_nk a, as Transformers' two fp8 layers hold it.

FP8Linear holds checkpoints such as DeepSeek's and Qwen's, CompressedTensorsFP8Linear those of
compressed-tensors. The scale is multiplied, though FP8Linear calls it `weight_scale_inv`. The layers' own
forward on a GPU rounds x to 8 bits too; here x is multiplied as it is. FP8Linear's backward rounds the scales
to 16 bits before the product; here the product is rounded once.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from fastlora.formats.format import class_name
from fastlora.formats.scaled import Scaled
from fastlora.formula.operands import BaseWeight

FP8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)


_CLASSES: Final = {"FP8Linear": "weight_scale_inv", "CompressedTensorsFP8Linear": "weight_scale"}


class FP8Linear(Scaled):
    """Transformers' FP8Linear and CompressedTensorsFP8Linear."""

    name = "fp8"
    about = "fp8 with scales, of Transformers or compressed-tensors"
    library = "transformers"
    keeps_dtype = False

    def holds(self, module: object) -> bool:
        """Exactly one of the two."""
        package, name = class_name(module)
        return package == self.library and name in _CLASSES

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """By the weight's dtype, not by the presence of a scale, which an unpacked weight may have kept."""
        q = module.weight
        scale = next(getattr(module, name) for name in _CLASSES.values() if hasattr(module, name))
        self.checked(module, q, scale, FP8)
        block = getattr(module, "block_size", None) or (q.shape if scale.numel() == 1 else (1, q.shape[1]))
        return self.scaled_base(q, scale, (block[0], block[1]), dtype)

    def values_dtype(self, module: Any) -> torch.dtype:
        """The bias's; else bf16, from which such checkpoints are made."""
        return torch.bfloat16 if module.bias is None else module.bias.dtype

    def packed_bytes(self, N: int, K: int) -> int:
        """A byte for each entry, and a scale for each 128 x 128 of them."""
        return N * K + 4 * -(-N // 128) * -(-K // 128)
