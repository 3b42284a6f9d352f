"""What is measured: shapes, ranks and dtypes; in full on a GPU, tiny on the CPU for a dry run."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from tests.testing import Operands, operands


class Case(NamedTuple):
    """One layer and batch: x [M, K], W [N, K], rank r, no bias."""

    M: int
    K: int
    N: int
    r: int
    dtype: torch.dtype
    adapter_dtype: torch.dtype

    def operands(self, device: torch.device) -> Operands:
        """Fresh random operands, none of them zero, whose x takes a gradient."""
        ops = operands(
            self.M,
            self.K,
            self.N,
            self.r,
            dtype=self.dtype,
            adapter_dtype=self.adapter_dtype,
            bias=False,
            device=device,
        )
        ops.x.requires_grad_()
        return ops

    @property
    def base_bytes(self) -> int:
        """Of x, W and dy."""
        return self.dtype.itemsize * (self.M * self.K + self.N * self.K + self.M * self.N)

    def labels(self) -> dict[str, object]:
        """What a result of this case is filed under."""
        return {
            "dtype": dtype_name(self.dtype),
            "adapter_dtype": dtype_name(self.adapter_dtype),
            "shape": {"M": self.M, "K": self.K, "N": self.N, "r": self.r},
        }

    def __str__(self) -> str:
        dtypes = f"{dtype_name(self.dtype)}, adapters {dtype_name(self.adapter_dtype)}"
        return f"M={self.M} {self.K}->{self.N} r={self.r} {dtypes}"


class Setting(NamedTuple):
    """How much one run does.

    Attributes:
        device: Where.
        modes: Names of the ways to time: "eager" and "graph"; "dry-run" marks times that mean nothing.
        cases: In the order of their worth.
        rounds: How often each method is timed in a case.
        warm_up_rounds: At most this many before.
        tests: Arguments of pytest that choose the numeric tests.
        test_seconds: After this time the tests are ended.
        soak: The case that is run over and over.
        soak_runs: How often.
        soak_seconds: No longer than this.
        matmul_size: Rows and columns of the square product that sets the matrix ceiling.
        copy_bytes: Size of the buffer whose copy sets the bandwidth ceiling.
    """

    device: torch.device
    modes: tuple[str, ...]
    cases: tuple[Case, ...]
    rounds: int
    warm_up_rounds: int
    tests: tuple[str, ...]
    test_seconds: float
    soak: Case
    soak_runs: int
    soak_seconds: float
    matmul_size: int
    copy_bytes: int


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


# The headline shape stands first, bf16 adapters before fp32, so that a run that is cut short has the most.
_GPU_CASES: Final = tuple(
    Case(M, K, N, r, torch.bfloat16, adapter_dtype)
    for adapter_dtype in (torch.bfloat16, torch.float32)
    for r in (16, 64)
    for M in (8192, 2048)
    for K, N in ((4096, 4096), (4096, 14336), (14336, 4096))
)

GPU: Final = Setting(
    device=torch.device("cuda"),
    modes=("eager", "graph"),
    cases=_GPU_CASES,
    rounds=30,
    warm_up_rounds=10,
    tests=("tests/test_launch.py",),
    test_seconds=150,
    # A ragged number of rows, enough blocks of them for every multiprocessor to hand over to others.
    soak=Case(2837, 4096, 4096, 16, torch.bfloat16, torch.bfloat16),
    soak_runs=2000,
    soak_seconds=30,
    matmul_size=8192,
    copy_bytes=4 * 2**30,
)

# Triton's interpreter multiplies bf16 wrongly, so the dry run takes fp16.
DRY: Final = Setting(
    device=torch.device("cpu"),
    modes=("dry-run",),
    cases=(
        Case(24, 32, 48, 4, torch.float16, torch.float16),
        Case(40, 48, 32, 20, torch.float16, torch.float32),
    ),
    rounds=3,
    warm_up_rounds=2,
    tests=("tests/test_launch.py", "-k", "adds_none or same_bits"),
    test_seconds=120,
    soak=Case(37, 48, 80, 4, torch.float16, torch.float16),
    soak_runs=5,
    soak_seconds=10,
    matmul_size=64,
    copy_bytes=2**20,
)
