"""The kernels that unpack W, compiled for a GPU and run by the interpreter in bf16: `python -m` this module.

The packed tensors are drawn, not made by a library: any bytes are a W. The bits are held to the host's.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight
from fastlora_kernels import dequantize_bnb_4bit, dequantize_fp4, dequantize_hqq, dequantize_scaled
from tests.ptx.driver.compiled import compiled
from tests.ptx.machine import Machine
from tests.ptx.memory import Memory
from tests.ptx.parse import parse
from tests.ptx.scheduler import run

N, K = 13, 100
BLOCK, BLOCK2 = 64, 4


def four_bits() -> BaseWeight:
    """NF4's layout with nested scales; blocks cross rows."""
    blocks = -(-N * K // BLOCK)
    tensors = (
        torch.randint(256, (N * K // 2,), dtype=torch.uint8),
        torch.randn(16),
        torch.randint(256, (blocks,), dtype=torch.uint8),
        torch.randn(256),
        torch.randn(-(-blocks // BLOCK2)),
        torch.randn(()),
    )
    return BaseWeight("bnb-4bit", tensors, N, K, torch.bfloat16, (BLOCK, BLOCK2, 0))


def eight_bits() -> BaseWeight:
    """fp8 in blocks of 4 x 32."""
    q = torch.randint(127, (N, K), dtype=torch.uint8).view(torch.float8_e4m3fn)
    return BaseWeight("fp8", (q, torch.randn(4, 4)), N, K, torch.bfloat16, (4, 32))


def three_bits() -> BaseWeight:
    """HQQ's layout in groups of ten entries, with rows of padding."""
    rows = N * K // 10
    words = torch.randint(2**30, (rows // 10 + 1, 10), dtype=torch.int32)
    scale, zero = torch.randn(2, rows, 1).bfloat16()
    return BaseWeight("hqq", (words, scale, zero), N, K, torch.bfloat16, (3, rows, 10, *[0] * 6))


def four_bit_floats(name: str) -> BaseWeight:
    """W [13, 96] in NVFP4 or MXFP4, with swizzled scales."""
    block = 16 if name == "torchao-nvfp4" else 32
    q = torch.randint(256, (N, 48), dtype=torch.uint8)
    scale = torch.randint(64, 127, (32, -(-96 // block // 4) * 16), dtype=torch.uint8)
    tensors = (q, scale, torch.tensor(0.3)) if block == 16 else (q, scale)
    return BaseWeight(name, tensors, N, 96, torch.bfloat16, (block, 1))


class _Launcher:
    """Stands where the kernel stood: `kernel[grid](**arguments)`."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda **arguments: self.launch(grid[0], arguments)

    def launch(self, grid: int, arguments: dict[str, Any]) -> None:
        made, bound = compiled(self.kernel, self.capability, arguments)
        tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
        start, end = {}, 256
        for name, tensor in tensors.items():
            start[name], end = end, (end + tensor.nbytes + 511) // 256 * 256
        memory = Memory(end, "global")
        for name, tensor in tensors.items():
            halves = slice(start[name] // 2, (start[name] + tensor.nbytes + 1) // 2)
            memory.valid[halves] = True
            if name != "out_ptr":
                memory.written[halves] = True
                memory.data[start[name] : start[name] + tensor.nbytes] = _bytes(tensor)
        values = [
            start.get(name, value) for name, value in bound.items() if made.signature[name] != "constexpr"
        ]
        # The interpreter extends no sign on loading; these arguments have none.
        ptx = made.ptx.replace("ld.param.s32", "ld.param.u32")
        run(Machine(parse(ptx), made.num_warps, made.shared, grid, [*values, 0, 0], memory, 4), None)
        out = tensors["out_ptr"]
        first = start["out_ptr"]
        assert memory.written[first // 2 : (first + out.nbytes) // 2].all(), "an entry was not written"
        _bytes(out)[:] = memory.data[first : first + out.nbytes]


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()


def main() -> int:
    """Run the kernels; 1 if a bit differs from the host's."""
    torch.manual_seed(20261122)
    wrong = 0
    for base, module in (
        (four_bits(), dequantize_bnb_4bit),
        (eight_bits(), dequantize_scaled),
        (three_bits(), dequantize_hqq),
        (four_bit_floats("torchao-nvfp4"), dequantize_fp4),
        (four_bit_floats("torchao-mxfp4"), dequantize_fp4),
    ):
        kernel, out = module.dequantize_kernel, torch.empty(base.N, base.K, dtype=base.dtype)
        module.dequantize_kernel = _Launcher(kernel, 90)
        try:
            FORMATS[base.format].launch(base, out)
        finally:
            module.dequantize_kernel = kernel
        same = torch.equal(out, FORMATS[base.format].dequantize(base))
        wrong += not same
        sys.stdout.write(f"{base.format}: {'the same bits' if same else 'other bits'}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
