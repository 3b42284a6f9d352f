"""NVFP4 and MXFP4 as torchao's NVFP4Tensor and MXTensor hold them: 4-bit floats, an 8-bit scale for a block.

    W_nk = v_nk a        a of the block of 16 (NVFP4) or 32 (MXFP4) entries of row n that k is in

v is one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 or its negative; a byte holds two, the first in its low nibble. NVFP4's
a is in e4m3, times one fp32 number for all of W where there is one; the products are in fp32, and W is
rounded once. MXFP4's a is a power of two; it, v and their product are each rounded to W's dtype.

The scales lie row by row, or "swizzled", as Blackwell's matrix units read them: in tiles of 128 x 4, of which
32 x 16 bytes are made, row r and column c of a tile at [r % 32, 4 (r // 32) + c].

What torchao makes of x besides (dynamic activation quantization) is left out: x is multiplied as it is.

Source: OCP Microscaling Formats (MX) Specification 1.0; `torchao.prototype.mx_formats` of torchao 0.18.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from fastlora.formats.format import Format, check_whole, class_name, shape_of
from fastlora.formula.operands import BaseWeight

_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class TorchaoFP4(Format):
    """A tensor subclass of torchao's with `qdata` [N, K / 2] and a `scale`, as the weight of an nn.Linear.

    The tensors are the bytes of qdata and of scale, and perhaps NVFP4's number for all of W; the statics are
    a block's length and whether the scales are swizzled.

    Args:
        name: The format's.
        kind: The subclass's name.
        block: Entries of a block.
        scales: The dtype of the scales.
    """

    library = "torchao"

    def __init__(self, name: str, kind: str, block: int, scales: torch.dtype) -> None:
        self.name, self.about = name, f"torchao's {kind} in 4 bits"
        self.kind, self.block, self.scales = kind, block, scales

    def holds(self, module: Any) -> bool:
        """Exactly an nn.Linear whose weight is of that subclass."""
        if type(module) is not nn.Linear:
            return False
        weight = module._parameters.get("weight")
        return weight is not None and class_name(weight.data) == (self.library, self.kind)

    def base_of(self, module: Any, dtype: torch.dtype) -> BaseWeight:
        """From the weight's inner tensors."""
        weight, (N, K) = module.weight, shape_of(module)
        q, scale = weight.qdata, weight.scale
        self._check(weight, N, K)
        tensors = [q.detach().view(torch.uint8), scale.detach().view(torch.uint8)]
        whole = getattr(weight, "per_tensor_scale", None)
        if whole is not None:
            tensors.append(whole.detach())
        check_whole({"qdata": q, "scale": scale, "per_tensor_scale": tensors[-1]}, "the weight of a Linear")
        return BaseWeight(
            self.name, tuple(tensors), N, K, dtype, (self.block, int(weight.is_swizzled_scales))
        )

    def _check(self, weight: Any, N: int, K: int) -> None:
        """Raise ValueError unless this is a W [N, K] in this format's blocks."""
        kind = getattr(weight, "elem_dtype", torch.float4_e2m1fn_x2)
        if kind != torch.float4_e2m1fn_x2:
            raise ValueError(
                f"weight of a Linear must be in 4 bits to be read as {self.about}; it is in {kind} (use "
                "torchao's Float8WeightOnlyConfig)"
            )
        found = (list(weight.qdata.shape), weight.block_size, weight.scale.dtype)
        wanted = ([N, K // 2], self.block, self.scales)
        if found != wanted or not weight.qdata.is_contiguous():
            raise ValueError(
                "weight of a Linear must be row by row in the shape [N, K / 2], the block and the dtype of "
                f"scales {wanted} for {self.about}; it is in {found} with strides "
                f"{list(weight.qdata.stride())}"
            )
        blocks = K // self.block
        count = 512 * -(-N // 128) * -(-blocks // 4) if weight.is_swizzled_scales else N * blocks
        if weight.scale.numel() != count:
            raise ValueError(
                f"scales of a Linear must be {count} for its {N} x {blocks} blocks; it has "
                f"{weight.scale.numel()}"
            )

    def values_dtype(self, module: Any) -> torch.dtype:
        """The dtype that the subclass answers for."""
        dtype: torch.dtype = module.weight.dtype
        return dtype

    def dequantize(self, base: BaseWeight) -> Tensor:
        """As `weight.dequantize(base.dtype)`, which rounds as the module's docstring says."""
        q, scale, *whole = base.tensors
        block, swizzled = base.statics
        if swizzled:
            scale = _row_by_row(scale, base.N, base.K // block)
        byte = torch.arange(256, device=q.device)
        magnitudes = torch.tensor(_VALUES, device=q.device)
        codes = torch.cat([magnitudes, -magnitudes])
        pairs = torch.stack([codes[byte & 15], codes[byte >> 4]], dim=1)
        values = nn.functional.embedding(q.long(), pairs).view(base.N, -1, block)
        if self.scales == torch.float8_e4m3fn:
            a = scale.contiguous().view(self.scales).float()
            a = whole[0] * a if whole else a
            return values.mul_(a[..., None]).view(base.N, base.K).to(base.dtype)
        a = _power_of_two(scale).to(base.dtype)
        return values.to(base.dtype).mul_(a[..., None]).view(base.N, base.K)

    def launch(self, base: BaseWeight, out: Tensor) -> None:
        """One program for a run of bytes."""
        from fastlora_kernels.dequantize_fp4 import BYTES, dequantize_kernel

        q, scale, *whole = base.tensors
        block, swizzled = base.statics
        dequantize_kernel[(-(-q.numel() // BYTES),)](
            q_ptr=q,
            scale_ptr=scale.contiguous(),
            whole_ptr=whole[0] if whole else None,
            out_ptr=out,
            num_bytes=q.numel(),
            blocks=base.K // block,
            POWERS=self.scales != torch.float8_e4m3fn,
            BLOCK=block,
            SWIZZLED=bool(swizzled),
            BYTES=BYTES,
            enable_fp_fusion=False,
        )

    def packed_bytes(self, N: int, K: int) -> int:
        """Half a byte for each entry, and a scale for each block."""
        return N * K // 2 + N * K // self.block


def _row_by_row(scale: Tensor, N: int, blocks: int) -> Tensor:
    """[N, blocks] from swizzled scales, whose last tiles are padded."""
    down, across = -(-N // 128), -(-blocks // 4)
    tiles = scale.reshape(down, across, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(down * 128, across * 4)[:N, :blocks]


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^(e - 127) in fp32, NaN for e = 255, from bytes."""
    bits = exponent.int() << 23
    bits = torch.where(exponent == 0, 1 << 22, bits).where(exponent != 255, 0x7FC00000)
    return bits.view(torch.float32)


NVFP4 = TorchaoFP4("torchao-nvfp4", "NVFP4Tensor", 16, torch.float8_e4m3fn)
MXFP4 = TorchaoFP4("torchao-mxfp4", "MXTensor", 32, torch.float8_e8m0fnu)
