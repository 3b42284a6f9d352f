"""DoRA's norms and sums, compiled for GPUs and run by the interpreter: `python -m` this module."""

from __future__ import annotations

import itertools
import sys

import torch

from fastlora.measuring.errors import budget_of, relative_error
from fastlora.measuring.inputs import random_inputs
from fastlora.routes import dora, fused_dora
from tests.ptx.driver.device import Settings, running_on

_DTYPES = ((torch.bfloat16, torch.float32), (torch.float16, torch.float16), (torch.float32, torch.float32))


def main() -> int:
    """Run both kernels in each pair of dtypes; 1 if a result is beyond its budget."""
    torch.manual_seed(20261126)
    worst = 0.0
    for architecture, (dtype, adapter) in itertools.product(("sm_80", "sm_90"), _DTYPES):
        i = random_inputs(600, 100, 70, 40, dtype=dtype, adapter_dtype=adapter)
        z, wide = torch.randn(600, 70).to(dtype), i.to(torch.float64)
        with running_on(Settings(architecture, int(architecture[3:]), seed=1), fused_dora):
            n, sums = fused_dora.row_norms(i.W, i.A, i.B, i.s), fused_dora.column_sums(i.dy, z)
        cases = (
            (n, dora.row_norms(i.W, i.A, i.B, i.s), dora.row_norms(wide.W, wide.A, wide.B, i.s)),
            (sums, (i.dy.float() * z.float()).sum(0), (wide.dy * z.double()).sum(0)),
        )
        error = max(
            relative_error(got, truth) / budget_of(torchs, truth, got.dtype) for got, torchs, truth in cases
        )
        worst = max(worst, error)
        sys.stdout.write(f"{architecture} {dtype} {adapter}: {error:.2f} of the budget\n")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
