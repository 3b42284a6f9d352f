"""HQQ: W in 8 bits and fewer, with a scale and a zero for each group of entries.

    W = ((q - zero) * scale) as [N, K]        q [R, C], the entries of W row by row

A group is a row of q (axis 1) or a column (axis 0). Difference and product are each rounded to the layer's
compute dtype, which scale and zero have. A word of `W_q` holds entries of one column of q: the rows are cut
into as many equal parts as a word has fields, the first part in the highest field. A word is a byte; of 3
bits an int32 with ten fields, and q ends with rows of padding. Scale and zero may be packed in turn, in the
same way (quantized meta-data, which the library has deprecated).

Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023; `HQQLinear`,
`Quantizer` and `BitPack` of hqq 0.2.8.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formats.format import Format, check_whole, class_name, shape_of
from fastlora.formula.operands import BaseWeight

# Bits of a field, and fields of a word.
_PACKINGS: Final = {
    "8bit_u8": (8, 1),
    "4bit_u8": (4, 2),
    "3bit_32": (3, 10),
    "2bit_u8": (2, 4),
    "1bit_u8": (1, 8),
}
_FIELDS: Final = dict(_PACKINGS.values())
# What is the same for W, scale and zero: three statics each, all 0 where scale or zero is not packed.
_STATICS: Final = 3


class HQQ(Format):
    """hqq's HQQLinear.

    The tensors are W's words, then scale and zero, each one tensor, or its own words, scale and zero. The
    statics are bits, rows and columns of W's q, of scale's and of zero's; 0 for one that is not packed.
    """

    name = "hqq"
    about = "HQQ in 8 to 1 bits"
    library = "hqq"
    parameter = "W_q"

    def holds(self, module: object) -> bool:
        """Exactly an HQQLinear."""
        return class_name(module) == (self.library, "HQQLinear")

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """From `W_q` and `meta`."""
        meta = _meta(module)
        words, statics = _words(module.W_q, meta)
        tensors = [words]
        for name in ("scale", "zero"):
            if meta[f"quant_{name}"]:
                inner = meta[f"meta_{name}"]
                packed, sizes = _words(meta[f"{name}_q"], inner)
                tensors += [packed, inner["scale"], inner["zero"]]
                statics += sizes
            else:
                tensors.append(meta[name])
                statics += (0,) * _STATICS
        N, K = shape_of(module)
        _check(module, tensors, statics)
        return BaseWeight(self.name, tuple(tensors), N, K, dtype, statics)

    def values_dtype(self, module: Any) -> torch.dtype:
        """The compute dtype, in which the library unpacks W."""
        dtype: torch.dtype = module.compute_dtype
        return dtype

    def compute_dtype(self, module: Any, x: torch.dtype, autocast: torch.dtype | None) -> torch.dtype:
        """The layer's own, in which the library takes x alone; under autocast, which it follows, that."""
        return autocast or self.values_dtype(module)

    def dequantize(self, base: BaseWeight) -> Tensor:
        """Difference and product in the dtype of scale and zero, as the library rounds them."""
        words, scale, zero, sizes = _whole_scales(base)
        return _unpacked(words, scale, zero, sizes).view(base.N, base.K).to(base.dtype)

    def launch(self, base: BaseWeight, out: Tensor) -> None:
        """One program for a run of words; packed scales and zeros are unpacked before, by torch."""
        from fastlora_kernels.dequantize_hqq import WORDS, dequantize_kernel

        words, scale, zero, (bits, rows, columns) = _whole_scales(base)
        dequantize_kernel[(-(-words.numel() // WORDS),)](
            words_ptr=words,
            scale_ptr=scale.contiguous(),
            zero_ptr=zero.contiguous(),
            out_ptr=out,
            num_words=words.numel(),
            num_entries=rows * columns,
            columns=columns,
            rows_apart=words.shape[0],
            GROUPS="all" if scale.numel() == 1 else "rows" if scale.shape[0] == rows else "columns",
            BITS=bits,
            FIELDS=_FIELDS[bits],
            WORDS=WORDS,
            enable_fp_fusion=False,
        )

    def packed_bytes(self, N: int, K: int) -> int:
        """In 4 bits and groups of 64, with 16-bit scales and zeros, as Transformers' HqqConfig is used."""
        return -(-N * K // 2) + 2 * 2 * -(-N * K // 64)


def _meta(module: Any) -> dict[str, Any]:
    """The layer's meta-data, if the layer is as the library made it."""
    meta: dict[str, Any] | None = module.meta
    if not module.ready or meta is None or module.W_q is None:
        raise ValueError(
            "W_q of a HQQLinear must be quantized; it is not yet (make the layer with initialize=True, or "
            "load its state_dict first)"
        )
    if module.offload_meta or "zero_scale" in meta:
        raise ValueError(
            "meta of a HQQLinear must be where W_q is; its scales stay on the CPU (quantize with "
            "offload_meta=False)"
        )
    if "linear_layer" in module._modules:
        raise ValueError(
            "a HQQLinear must not keep the layer that it was made from, which LoRA would lose "
            "(quantize with del_orig=True)"
        )
    return meta


def _words(packed: Tensor, meta: dict[str, Any]) -> tuple[Tensor, tuple[int, ...]]:
    """Words [rows of words, C] without gradient, and (bits, R, C)."""
    packing = meta["packing"]
    if packing not in _PACKINGS:
        raise ValueError(
            f"meta of a HQQLinear must name one of the packings {', '.join(_PACKINGS)}; it has {packing!r}"
        )
    bits, fields = _PACKINGS[packing]
    kind = meta["compute_dtype"] if meta.get("view_as_float") else torch.int32 if bits == 3 else torch.uint8
    if packed.dtype != kind:
        raise ValueError(
            f"W_q of a HQQLinear must be in {kind}, as it was packed; it is in {packed.dtype} (a model whose "
            "parameters were all converted has lost W)"
        )
    words = packed.detach().view(torch.int32 if bits == 3 else torch.uint8)
    N, K = meta["shape"]
    rows, left = divmod(N * K, words.shape[-1])
    if left or words.shape[0] != -(-rows // fields):
        raise ValueError(
            f"W_q of a HQQLinear must hold {[N, K]} in {bits} bits; its shape {list(packed.shape)} does not "
            f"(the rows of its groups must be a multiple of {fields})"
        )
    return words, (bits, rows, words.shape[-1])


def _check(module: Any, tensors: list[Tensor], statics: tuple[int, ...]) -> None:
    """Raise ValueError unless the tensors lie together and make a W in the layer's compute dtype."""
    what, dtype = "a HQQLinear", module.compute_dtype
    check_whole({"W_q": module.W_q, **{f"meta of W_q ({i})": t for i, t in enumerate(tensors[1:])}}, what)
    if tuple(module.meta["shape"]) != shape_of(module):
        raise ValueError(
            f"meta of {what} must say [N, K] = {list(shape_of(module))}; it says {list(module.meta['shape'])}"
        )
    floats = [tensor for tensor in tensors[1:] if tensor.is_floating_point()]
    if any(tensor.dtype != dtype for tensor in floats):
        raise ValueError(
            f"scale and zero of {what} must be in its compute_dtype {dtype}; they are in "
            f"{', '.join(sorted({str(tensor.dtype) for tensor in floats}))}"
        )


def _whole_scales(base: BaseWeight) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    """W's words, scale and zero as numbers, and (bits, R, C)."""
    words, *rest = base.tensors
    bits, rows, columns, *inner = base.statics
    whole = []
    for sizes in (inner[:_STATICS], inner[_STATICS:]):
        if not sizes[0]:
            whole.append(rest.pop(0))
            continue
        packed, scale, zero = rest[:3]
        del rest[:3]
        whole.append(_unpacked(packed, scale, zero, tuple(sizes)))
    groups = _shape_of_scales(whole, rows, columns)
    return words, whole[0].view(groups), whole[1].view(groups), (bits, rows, columns)


def _shape_of_scales(whole: list[Tensor], rows: int, columns: int) -> tuple[int, int]:
    """[R, 1] or [1, C], or [1, 1] where all entries are one group."""
    count = max(tensor.numel() for tensor in whole)
    return (1, 1) if count == 1 else (rows, 1) if count == rows else (1, columns)


def _unpacked(words: Tensor, scale: Tensor, zero: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(q - zero) * scale, [R, C], each step rounded to their dtype."""
    bits, rows, _ = sizes
    fields, mask = range(_FIELDS[bits])[::-1], 2**bits - 1
    q = words if bits == 8 else torch.cat([(words >> bits * field) & mask for field in fields])[:rows]
    return (q.to(scale.dtype) - zero).mul_(scale)
