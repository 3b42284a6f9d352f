"""Compiles the kernel of dx's masked update, for any GPU on any machine, and checks the result."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget

from fastlora_kernels import masked_update
from fastlora_kernels.compile_check.compiler import (
    Constant,
    Resources,
    checked,
    compile_with,
    faults_of_resources,
)
from fastlora_kernels.compile_check.variants import TARGETS


class Update(NamedTuple):
    """One kernel to compile: the dtypes of x and of A, how fp32 is multiplied, and the target."""

    element: str
    adapter: str
    precision: str
    target: GPUTarget

    def __str__(self) -> str:
        dtypes = f"{self.element}/{self.adapter} {self.precision}"
        return f"{self.target.arch} masked update, {dtypes}"


def update_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Update]:
    """fp32 adapters on bf16, fp16 and fp32 for each target of the architectures; or every pair of dtypes."""
    targets = [target for architecture in architectures for target in TARGETS[architecture]]
    pairs = [("bf16", "fp32"), ("fp16", "fp32"), ("fp32", "fp32")]
    pairs += [("bf16", "bf16"), ("fp16", "fp16")] if every_variant else []
    for target, (element, adapter) in itertools.product(targets, pairs):
        for precision in ("ieee", "tf32") if element == "fp32" else ("ieee",):
            yield Update(element, adapter, precision, target)


def check_update(case: Update) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_update, lambda _, made: faults_of_resources(made))


def compile_update(case: Update) -> Resources:
    """Compile one kernel as it is launched."""
    kernel = masked_update.masked_update_kernel
    kinds: dict[str, Any] = {
        "q_ptr": "*fp32",
        "A": (f"*{case.adapter}", "i32", Constant(1)),
        "dx_ptr": f"*{case.element}",
        "seed_ptr": "*i64",
        "threshold": "i32",
        "kept_scale": "fp32",
        "M": "i32",
        "K": "i32",
        "r": "i32",
        "BLOCK_M": Constant(masked_update.BLOCK_M),
        "BLOCK_K": Constant(masked_update.BLOCK_K),
        "PRECISION": Constant(case.precision),
    }
    return compile_with(kernel, kinds, {"num_warps": masked_update.WARPS}, case.target)
