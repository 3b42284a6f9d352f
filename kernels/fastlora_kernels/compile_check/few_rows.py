"""Compiles the kernel of few rows over a packed W, for any GPU on any machine, and checks the result."""

import itertools
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from fastlora_kernels.compile_check.compiler import (
    SIXTEENS,
    Constant,
    Resources,
    checked,
    compile_with,
    faults_of_resources,
    kinds_of_both,
)
from fastlora_kernels.compile_check.hand_over import hand_over_faults
from fastlora_kernels.compile_check.hand_over_events import Kernel
from fastlora_kernels.compile_check.variants import TARGETS, Variant
from fastlora_kernels.configs import PACKED_TILE, launch_options, rank_block
from fastlora_kernels.few_rows import few_rows_kernel
from fastlora_kernels.tables import load_table

_NESTED: Final = ("*u8", "*fp32", "*u8", "*fp32", "*fp32", "*fp32")
_PLAIN: Final = ("*u8", "*fp32", "*fp32", *[Constant(None)] * 3)
# How W is packed: its pointers, KIND, BLOCK, BLOCK2 and BY_ROW.
_FORMATS: Final = {
    "4 bits, nested": (_NESTED, "4 bits", 64, 256, True),
    "4 bits, nested, blocks across rows": (_NESTED, "4 bits", 64, 256, False),
    "4 bits": (_PLAIN, "4 bits", 64, 0, True),
    "int8": (("*u8", "*fp32", Constant(None)), "int8", 1, 0, True),
    "int8 with zero points": (("*u8", "*fp32", "*i8"), "int8", 1, 0, True),
    "e4m3 in blocks": (("*u8", "*fp32", Constant(None)), "e4m3", 128, 128, True),
}
# Of Triton.
_IS_NEW: Final = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
_DEMANDING: Final = ("4 bits, nested", "int8 with zero points")


class FewRows(NamedTuple):
    """One kernel to compile."""

    format: str
    architecture: str
    variant: Variant
    target: GPUTarget

    def __str__(self) -> str:
        variant = self.variant
        return (
            f"{self.target.arch} few rows over {self.format}, {variant.element} with "
            f"{variant.adapter} adapters, r={variant.r}"
            f"{', dropout' if variant.dropout else ''}{', split-K' if variant.split_k else ''}"
        )


def few_rows_cases(architectures: list[str], *, every_variant: bool) -> Iterator[FewRows]:
    """The most demanding formats and variants, for each target of the architectures; or all."""
    pairs = (("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp16"), ("fp16", "fp32"))
    least = [Variant(*pair) for pair in pairs] if every_variant else []
    most = [
        Variant(*pair, 64, dropout=True, split_k=True) for pair in (pairs if every_variant else pairs[1:2])
    ]
    for architecture in architectures:
        for target, format, variant in itertools.product(TARGETS[architecture], _FORMATS, (*least, *most)):
            if every_variant or format in _DEMANDING:
                yield FewRows(format, architecture, variant, target)


def check_few_rows(case: FewRows) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_few_rows, _faults)


def _faults(case: FewRows, made: Resources) -> list[str]:
    found = faults_of_resources(made, load_table(case.architecture).shared_memory)
    if case.target.backend == "cuda":
        found += hand_over_faults(
            made.assembly, Kernel("forward", made.arguments, PACKED_TILE, _block_r(case))
        )
        # A scale is a product and a sum that round apart, and each value one product.
        if re.search(r"\bfma\.rn\S*\.f32", made.assembly):
            found.append("fuses a product and a sum")
        if case.target.arch == 90 and not re.search(r"wgmma\.mma_async\S* \{[^}]*\}, \{", made.assembly):
            found.append("has no wgmma with W in registers")
        # Nested scales are bytes too; before Triton 3.9 every thread loads those of all its rows.
        if (
            _IS_NEW
            and _FORMATS[case.format][-1]
            and len(re.findall(r"ld\.global\S*\.[bu]8\s", made.assembly)) > 4
        ):
            found.append("loads W a byte at a time, which is not prefetched")
    return found


def compile_few_rows(case: FewRows) -> Resources:
    """Compile one kernel as it is launched."""
    options = {**launch_options(PACKED_TILE, case.target.backend), "enable_fp_fusion": False}
    return compile_with(few_rows_kernel, _kinds(case), options, case.target)


def _block_r(case: FewRows) -> int:
    variant = case.variant
    return rank_block(variant.r, case.architecture, variant.kind, variant.wide_adapters, variant.tf32_terms)


def _kinds(case: FewRows) -> dict[str, Any]:
    """The kind of every argument."""
    variant, (pointers, kind, block, block2, by_row) = case.variant, _FORMATS[case.format]
    element = f"*{variant.element}"
    return kinds_of_both(case.architecture, PACKED_TILE, variant) | {
        "x": (element, SIXTEENS, Constant(1)),
        "W": pointers,
        "b_ptr": element,
        "y": element,
        "scratch_ptrs": ("*fp32", "*fp32" if variant.split_k else Constant(None)),
        "factor": "fp32",
        "split_p": "i32",
        "split_y": "i32",
        "KIND": Constant(kind),
        "BLOCK": Constant(block),
        "BLOCK2": Constant(block2),
        "BY_ROW": Constant(by_row),
        "PERMUTED": Constant(case.target.backend == "cuda"),
    }
