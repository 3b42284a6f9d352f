"""The route of the vendor's products beside kernels, its launches compiled for GPUs: `python -m` this module.

torch's products on the CPU stand for the vendor's. Results are held to the error budget, and the mask is that
of the definition.
"""

from __future__ import annotations

import sys

import torch

from fastlora.formula.operands import EVERYTHING
from fastlora.measuring.errors import budget_of, relative_error, split_eps
from fastlora.routes import fused, vendor_beside_kernels
from tests.ptx.driver.cases import Case
from tests.ptx.driver.check import MASK_SEED, inputs_of, mask_of
from tests.ptx.driver.device import Settings, running_on
from tests.ptx.driver.reference import tf32_product, unfused

_CASES = (
    Case("sm_80", dtype="bf16", adapter="fp32", M=50, K=72, N=40, dropout=0.25),
    Case("sm_90", dtype="bf16", adapter="fp32", M=70, K=136, N=72, r=8, dropout=0.25),
    Case("sm_90", dtype="fp16", M=33, K=101, N=67, r=24, dropout=0.25),
    Case("sm_90", dtype="fp32", precision="tf32", M=50, K=72, N=40),
)


def run(case: Case) -> float:
    """The worst error over its budget."""
    torch.manual_seed(20261126)
    i, D = inputs_of(case), mask_of(case)
    o = i.call(case.dropout, torch.tensor([MASK_SEED]) if case.dropout else None)
    with running_on(Settings(case.architecture, case.target, seed=1)):
        y, p = vendor_beside_kernels.forward(o)
        dx, dA, dB = vendor_beside_kernels.backward(o, i.dy, p, EVERYTHING)
    truth = unfused(i.to(torch.float64), D)
    torchs = unfused(i, D, tf32_product if case.precision == "tf32" else torch.matmul)
    results = {"y": y, "p": p, "dx": dx, "dA": dA, "dB": dB}
    return max(
        relative_error(result, truth[name])
        / (budget_of(torchs[name], truth[name], result.dtype) + split_eps(i))
        for name, result in results.items()
    )


def main() -> int:
    """Run every case; 1 if one is beyond its budget."""
    worst = 0.0
    for case in _CASES:
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        fused.architecture_of = lambda _, case=case: case.architecture
        error = run(case)
        worst = max(worst, error)
        sys.stdout.write(f"{case.architecture} {case.dtype}: {error:.2f} of the budget\n")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
