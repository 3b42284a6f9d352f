"""W in 8 bits with a scale for each block of rows and columns: what the int8 and fp8 formats share.

    W_nk = (q_nk - z) * a        a and z of the block [n // rows, k // columns]

computed in fp32 and rounded once. Most formats have no zero points z.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from fastlora.formats.format import Format, check_whole, shape_of
from fastlora.formula.operands import BaseWeight

_KINDS: Final = {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


class Scaled(Format):
    """A format of 8-bit values and scales.

    The tensors are q [N, K], a [blocks of rows, blocks of columns] and perhaps z, in a's shape; the statics
    are a block's rows and columns.

    Attributes:
        factor: What every scale is multiplied by, in fp32, before it is used.
    """

    factor = 1.0

    def scaled_base(
        self, q: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype, zero: Tensor | None = None
    ) -> BaseWeight:
        """A base weight of these tensors; a scale of any shape that has a value for each block."""
        N, K = q.shape
        grid = (-(-N // block[0]), -(-K // block[1]))
        tensors = [q.detach(), scale.detach().reshape(grid)]
        if zero is not None:
            tensors.append(zero.detach().reshape(grid))
        return BaseWeight(self.name, tuple(tensors), N, K, dtype, block)

    def checked(self, module: Any, q: Tensor, scale: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
        """Raise ValueError unless q is [N, K] in one of these dtypes and lies with its scales, whole."""
        what, shape = f"a {type(module).__name__}", shape_of(module)
        check_whole({"weight": q, "scale": scale}, what)
        if q.dtype not in dtypes or tuple(q.shape) != shape:
            raise ValueError(
                f"weight of {what} must be [N, K] = {list(shape)} in {' or '.join(map(str, dtypes))} for "
                f"{self.about}; got {list(q.shape)} in {q.dtype}"
            )

    def dequantize(self, base: BaseWeight) -> Tensor:
        """One product in fp32, or in fp64 where that is asked for."""
        q, scale, *zero = base.tensors
        rows, columns = base.statics
        scale = scale.float().mul(self.factor) if self.factor != 1 else scale.float()
        W = torch.empty(base.N, base.K, device=q.device, dtype=base.dtype)
        if columns >= base.K and not zero:
            return torch.mul(q if q.dtype == torch.int8 else q.float(), _along_rows(scale, rows, base), out=W)
        values = q.float()
        if zero:
            values -= _over_columns(_along_rows(zero[0].float(), rows, base), columns, base)
        return torch.mul(values, _over_columns(_along_rows(scale, rows, base), columns, base), out=W)

    def launch(self, base: BaseWeight, out: Tensor) -> None:
        """One program for a block of W."""
        from fastlora_kernels.dequantize_scaled import BLOCK_K, BLOCK_N, dequantize_kernel

        q, scale, *zero = base.tensors
        rows, columns = base.statics
        dequantize_kernel[(-(-base.N // BLOCK_N) * -(-base.K // BLOCK_K),)](
            q_ptr=q.contiguous().view(torch.uint8),
            scale_ptr=scale.contiguous(),
            zero_ptr=zero[0].contiguous() if zero else None,
            out_ptr=out,
            N=base.N,
            K=base.K,
            rows=rows,
            columns=columns,
            grid_columns=scale.shape[1],
            factor=self.factor,
            KIND=_KINDS[q.dtype],
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=False,
        )

    def as_operand(self, base: BaseWeight, columns: int) -> dict[str, Any] | None:
        """Where a row's part in a tile has one scale."""
        q, scale, *zero = base.tensors
        rows, block = base.statics
        if block < base.K and block % columns:
            return None
        return {
            "W": (
                q.contiguous().view(torch.uint8),
                scale.contiguous(),
                zero[0].contiguous() if zero else None,
            ),
            "factor": self.factor,
            "KIND": _KINDS[q.dtype],
            "BLOCK": rows if rows < base.N else 0,
            "BLOCK2": block if block < base.K else 0,
            "BY_ROW": True,
        }


def _along_rows(scale: Tensor, rows: int, base: BaseWeight) -> Tensor:
    """[N or 1, blocks of columns], so that it broadcasts over the rows of W."""
    if scale.shape[0] == 1 or rows == 1:
        return scale
    return scale.repeat_interleave(rows, dim=0)[: base.N]


def _over_columns(scale: Tensor, columns: int, base: BaseWeight) -> Tensor:
    """[..., K or 1], so that it broadcasts over the columns of W."""
    if scale.shape[1] == 1:
        return scale
    return scale.repeat_interleave(columns, dim=1)[:, : base.K]
