"""bitsandbytes' NF4 and FP4: 16 values, four bits for each entry of W, a scale for each block of entries.

    W_e = code[nibble_e] * a[e // block]        e counts the entries of W row by row, so blocks cross rows

A byte holds two entries, the first in its high nibble. The scales a are fp32. Or they are packed in turn (the
library's "nested" or double quantization), a byte for each, and then

    a_i = code2[byte_i] * a2[i // block2] + offset

with product and sum each rounded to fp32.

Source: Dettmers et al., "QLoRA", arXiv 2305.14314; `Linear4bit` and `dequantize_4bit` of bitsandbytes 0.50.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formats.format import Format, check_whole, class_name, shape_of
from fastlora.formula.operands import BaseWeight

_CLASSES: Final = ("Linear4bit", "LinearNF4", "LinearFP4")
# Their codes' second and last values tell them apart without reading the tensor on every call.
_TYPES: Final = ("nf4", "fp4")
# The library's AVX512 kernel differs in the last bits from here on. And it takes even rows only; of those in
# which a block ends, it gives some the scale of another block.
_OWN_KERNEL_BELOW: Final = 2048
_KERNEL_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)


class Bnb4bit(Format):
    """bitsandbytes' Linear4bit.

    The tensors are the packed bytes, the code and the scales; of nested ones also code2, a2 and offset. The
    statics are the two block lengths, 0 where nothing is nested, and the index of the type in ("nf4", "fp4").
    """

    name = "bnb-4bit"
    about = "bitsandbytes NF4 or FP4"
    library = "bitsandbytes"

    def holds(self, module: object) -> bool:
        """A Linear4bit itself or one of the library's two subclasses, which differ in construction alone."""
        package, name = class_name(module)
        return package == self.library and name in _CLASSES

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """From `module.weight` and its quant_state, which FSDP leaves on the module alone."""
        weight, state = module.weight, _state(module)
        N, K = shape_of(module)
        packed: Tensor = weight.detach().view(torch.uint8).flatten()
        nested: tuple[Tensor, ...] = ()
        block2 = 0
        if state.state2 is not None:
            nested, block2 = (state.state2.code, state.state2.absmax, state.offset), state.state2.blocksize
        statics = (state.blocksize, block2, _TYPES.index(state.quant_type))
        return BaseWeight(self.name, (packed, state.code, state.absmax, *nested), N, K, dtype, statics)

    def values_dtype(self, module: Any) -> torch.dtype:
        """The dtype that W was packed from."""
        dtype: torch.dtype = _state(module).dtype
        return dtype

    def compute_dtype(self, module: Any, x: torch.dtype, autocast: torch.dtype | None) -> torch.dtype:
        """The layer's own; else x's, as the library sets it in its first forward; never autocast's."""
        dtype: torch.dtype = module.compute_dtype or x
        return dtype

    def dequantize(self, base: BaseWeight) -> Tensor:
        """By the library's kernel on a CPU, where it has one; by tables otherwise."""
        packed, code, scales, *nested = base.tensors
        block, block2, kind = base.statics
        if nested:
            scales = _nested_scales(scales, nested, block2)
        if _library_takes(base, block):
            W: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
                packed, scales, block, _TYPES[kind], (base.N, base.K), base.dtype
            )
            return W
        return _by_table(packed, code, scales, block, base)

    def launch(self, base: BaseWeight, out: Tensor) -> None:
        """One program for a run of bytes."""
        from fastlora_kernels.dequantize_bnb_4bit import BYTES, dequantize_kernel

        packed, code, scales, *nested = base.tensors
        block, block2, _ = base.statics
        code2, scales2, offset = nested or (None, None, None)
        dequantize_kernel[(-(-packed.numel() // BYTES),)](
            packed_ptr=packed,
            code_ptr=code,
            scales_ptr=scales,
            code2_ptr=code2,
            scales2_ptr=scales2,
            offset_ptr=offset,
            out_ptr=out,
            num_entries=base.N * base.K,
            BLOCK=block,
            BLOCK2=block2,
            BYTES=BYTES,
            enable_fp_fusion=False,
        )

    def as_operand(self, base: BaseWeight, columns: int) -> dict[str, Any] | None:
        """Where no byte is in two rows."""
        if base.K % 2:
            return None
        packed, code, scales, *nested = base.tensors
        block, block2, _ = base.statics
        return {
            "W": (packed, code, scales, *(nested or (None, None, None))),
            "factor": 1.0,
            "KIND": "4 bits",
            "BLOCK": block,
            "BLOCK2": block2,
            "BY_ROW": base.K % block == 0 and block % columns == 0,
        }

    def packed_bytes(self, N: int, K: int) -> int:
        """With nested scales, as Transformers' and Unsloth's loaders are used."""
        blocks = -(-N * K // 64)
        return -(-N * K // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


def _state(module: Any) -> Any:
    """The layer's QuantState, checked to describe this W as the library's training path reads it."""
    weight = module.weight
    what = f"a {type(module).__name__}"
    state = getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)
    if state is None:
        raise ValueError(
            f"weight of {what} must be quantized; it is not yet (move the model to its device first: "
            "bitsandbytes quantizes in .to)"
        )
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            f"weight of {what} must be as bitsandbytes quantized it; it has run in eval mode on this CPU, "
            "for which bitsandbytes repacks W in place and rounds its scales anew (load the model again, and "
            "apply LoRA before it runs in eval mode)"
        )
    shape, wanted = tuple(state.shape), shape_of(module)
    if shape != wanted:
        raise ValueError(
            f"weight of {what} must be [N, K] = {list(wanted)}; its quant_state says {list(shape)}"
        )
    check_whole({"weight": weight, "absmax": state.absmax}, what)
    return state


def _nested_scales(scales: Tensor, nested: list[Tensor], block2: int) -> Tensor:
    """The fp32 scales [blocks]: a product, then a sum, as the library rounds them."""
    code2, scales2, offset = nested
    values = code2.take(scales.long())
    whole = scales2.repeat_interleave(block2)[: scales.numel()]
    return values.mul_(whole).add_(offset)


def _library_takes(base: BaseWeight, block: int) -> bool:
    return (
        base.tensors[0].is_cpu
        and base.dtype in _KERNEL_DTYPES
        and base.K % 2 == 0
        and base.K % block == 0
        and block < _OWN_KERNEL_BELOW
        and "bitsandbytes" in sys.modules
    )


def _by_table(packed: Tensor, code: Tensor, scales: Tensor, block: int, base: BaseWeight) -> Tensor:
    """Both entries of each byte from a table of 256 pairs, then one product in fp32 and one rounding."""
    count = base.N * base.K
    byte = torch.arange(256, device=packed.device)
    pairs = torch.stack([code[byte >> 4], code[byte & 15]], dim=1)
    values = torch.nn.functional.embedding(packed.long(), pairs).flatten()[:count]
    blocks = scales.numel()
    whole = (blocks - 1) * block
    W = torch.empty(count, device=packed.device, dtype=base.dtype)
    W[:whole].view(-1, block).copy_(values[:whole].view(-1, block).mul_(scales[:-1, None]))
    W[whole:].copy_(values[whole:].mul_(scales[-1]))
    return W.view(base.N, base.K)
