"""The kernel of few rows over a packed W, compiled for GPUs and run by the interpreter: `python -m` this.

The packed tensors are drawn, not made by a library. y is held to fp64 with the host's W, and W itself is read
out by rows of x that are unit vectors.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight, Operands
from fastlora.measuring.errors import assert_within_budget, gradients, oracle
from fastlora.measuring.inputs import Inputs, random_inputs
from fastlora.routes import fused_packed
from fastlora.routes.decide import problem_of
from fastlora.routes.plan import few_rows_plan
from tests.ptx.driver.device import Settings, running_on

M, N, K, R = 13, 104, 320, 20
BLOCK, BLOCK2 = 64, 4


def four_bits(dtype: torch.dtype, *, nested: bool) -> BaseWeight:
    """NF4's layout, or FP4's; blocks do not cross rows."""
    blocks = N * K // BLOCK
    code, bytes_ = torch.randn(16), torch.randint(256, (N * K // 2,), dtype=torch.uint8)
    tensors: tuple[Tensor, ...] = (bytes_, code, torch.rand(blocks))
    if nested:
        index = torch.randint(256, (blocks,), dtype=torch.uint8)
        tensors = (bytes_, code, index, torch.randn(256), torch.rand(-(-blocks // BLOCK2)), torch.tensor(0.5))
    return BaseWeight("bnb-4bit", tensors, N, K, dtype, (BLOCK, BLOCK2 if nested else 0, 0))


def eight_bits(dtype: torch.dtype) -> BaseWeight:
    """int8 with a scale for each row."""
    q = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    return BaseWeight("bnb-int8", (q, torch.rand(N, 1)), N, K, dtype, (1, K))


def run(base: BaseWeight, inputs: Inputs, settings: Settings) -> Tensor:
    """y of one launch."""
    o = Operands(inputs.x, base, inputs.b, inputs.A, inputs.B, inputs.s)
    with running_on(settings, fused_packed):
        y, _ = fused_packed.few_rows(o, few_rows_plan(settings.architecture, problem_of(o)))
    return y


def check(base: BaseWeight, settings: Settings, adapter: torch.dtype) -> None:
    """Hold one launch to fp64, and W to the host's bits."""
    inputs = random_inputs(M, K, N, R, dtype=base.dtype, adapter_dtype=adapter)
    W = FORMATS[base.format].dequantize(base)
    whole = replace(inputs, W=W)
    assert_within_budget("y", run(base, inputs, settings), gradients(whole)["y"], oracle(whole)["y"])
    units = torch.zeros_like(inputs.x)
    at = torch.randperm(K)[:M]
    units[torch.arange(M), at] = 1
    A = inputs.A.clone()
    A[:, at] = 0
    reading = replace(whole, x=units, b=None, A=A)
    if not torch.equal(run(base, reading, settings), W[:, at].t()):
        raise AssertionError("W has other bits than the host's")


def main() -> int:
    """Run the kernel over each packing; 1 if anything is wrong."""
    torch.manual_seed(20261126)
    wrong = 0
    half, bf16, fp32 = torch.float16, torch.bfloat16, torch.float32
    for architecture, capability in (("sm_80", 80), ("sm_90", 90)):
        for name, base, adapter, seed in (
            ("4 bits, nested", four_bits(bf16, nested=True), fp32, None),
            ("4 bits", four_bits(half, nested=False), half, 1),
            ("int8", eight_bits(bf16), bf16, 2),
        ):
            told = "right"
            try:
                check(base, Settings(architecture, capability, seed), adapter)
            except AssertionError as error:
                wrong, told = wrong + 1, f"wrong: {error}"
            sys.stdout.write(f"{architecture}, {name}: {told}\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
