"""Compiles the kernels of DoRA's sums, for any GPU on any machine, and checks the result."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget

from fastlora_kernels import magnitudes
from fastlora_kernels.compile_check.compiler import (
    SIXTEENS,
    Constant,
    Resources,
    checked,
    compile_with,
    faults_of_resources,
)
from fastlora_kernels.compile_check.variants import TARGETS


class Sum(NamedTuple):
    """One kernel to compile: "norms" or "sums", the dtypes of W and of A, and the target."""

    name: str
    element: str
    adapter: str
    target: GPUTarget

    def __str__(self) -> str:
        return f"{self.target.arch} DoRA's {self.name}, {self.element}/{self.adapter}"


def sum_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Sum]:
    """The norms with fp32 adapters over bf16, for each target of the architectures; or all of both."""
    targets = [target for architecture in architectures for target in TARGETS[architecture]]
    pairs = [("bf16", "fp32"), ("bf16", "bf16"), ("fp16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32")]
    for target, (element, adapter) in itertools.product(targets, pairs if every_variant else pairs[:1]):
        yield Sum("norms", element, adapter, target)
        if every_variant:
            yield Sum("sums", element, adapter, target)


def check_sums(case: Sum) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_sums, lambda _, made: faults_of_resources(made))


def compile_sums(case: Sum) -> Resources:
    """Compile one kernel as it is launched."""
    is_norms = case.name == "norms"
    kernel = magnitudes.row_norms_kernel if is_norms else magnitudes.column_sums_kernel
    kinds = _norms(case) if is_norms else _sums(case)
    return compile_with(kernel, kinds, {"num_warps": magnitudes.WARPS}, case.target)


def _norms(case: Sum) -> dict[str, Any]:
    adapter = (f"*{case.adapter}", SIXTEENS, Constant(1))
    return {
        "W": (f"*{case.element}", SIXTEENS, Constant(1)),
        "A": adapter,
        "B": adapter,
        "n_ptr": "*fp32",
        "s": "fp32",
        "N": SIXTEENS,
        "K": SIXTEENS,
        "r": "i32",
        "BLOCK_N": Constant(magnitudes.NORM_ROWS),
        "BLOCK_K": Constant(magnitudes.NORM_COLUMNS),
        "BLOCK_R": Constant(magnitudes.NORM_RANKS),
    }


def _sums(case: Sum) -> dict[str, Any]:
    rows = (f"*{case.element}", SIXTEENS, Constant(1))
    return {
        "dy": rows,
        "z": rows,
        "sums_ptr": "*fp32",
        "M": "i32",
        "N": SIXTEENS,
        "BLOCK_M": Constant(magnitudes.SUM_ROWS),
        "BLOCK_N": Constant(magnitudes.SUM_COLUMNS),
        "STRIP": Constant(magnitudes.SUM_STRIP),
    }
