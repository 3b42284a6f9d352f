"""Compiles the kernels that unpack W, for any GPU on any machine, and checks the result.

They have no tiles to choose, so there is a case for each format, dtype and target.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from triton.backends.compiler import GPUTarget

from fastlora_kernels import dequantize_bnb_4bit, dequantize_fp4, dequantize_hqq, dequantize_scaled
from fastlora_kernels.compile_check.compiler import (
    Constant,
    Resources,
    checked,
    compile_with,
    faults_of_resources,
)
from fastlora_kernels.compile_check.variants import TARGETS

_KERNELS: Final = {
    "bnb_4bit": dequantize_bnb_4bit.dequantize_kernel,
    "scaled": dequantize_scaled.dequantize_kernel,
    "hqq": dequantize_hqq.dequantize_kernel,
    "fp4": dequantize_fp4.dequantize_kernel,
}
# One of each kernel, which stands for the rest unless every variant is asked for.
_DEMANDING: Final = ("4 bits, nested", "int8 with zero points", "HQQ in 3 bits", "NVFP4, swizzled")
_SCALED: Final = {"N": "i32", "K": "i32", "rows": "i32", "columns": "i32", "grid_columns": "i32"}
_NOT_NESTED: Final = {
    "code2_ptr": Constant(None),
    "scales2_ptr": Constant(None),
    "offset_ptr": Constant(None),
}
_NESTED: Final = {"code2_ptr": "*fp32", "scales2_ptr": "*fp32", "offset_ptr": "*fp32"}


class Unpacking(NamedTuple):
    """One kernel to compile: a format, the dtype of W, the kernel's module and the kinds of its arguments."""

    format: str
    element: str
    target: GPUTarget
    module: str
    kinds: dict[str, Any]

    @property
    def kernel(self) -> Any:
        """The kernel, which cannot be pickled."""
        return _KERNELS[self.module]

    def __str__(self) -> str:
        return f"{self.target.arch} unpacking {self.format} to {self.element}"


def unpacking_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Unpacking]:
    """The most demanding formats to bf16, for each target of the architectures; or every format and dtype."""
    targets = [target for architecture in architectures for target in TARGETS[architecture]]
    elements = ("bf16", "fp16", "fp32") if every_variant else ("bf16",)
    for target, element in itertools.product(targets, elements):
        for format, module, kinds in _formats():
            if every_variant or format in _DEMANDING:
                yield Unpacking(format, element, target, module, {**kinds, "out_ptr": f"*{element}"})


def _formats() -> Iterator[tuple[str, str, dict[str, Any]]]:
    four = {"packed_ptr": "*u8", "code_ptr": "*fp32", "num_entries": "i32", "BLOCK": Constant(64)}
    four["BYTES"] = Constant(dequantize_bnb_4bit.BYTES)
    yield "4 bits, nested", "bnb_4bit", {**four, **_NESTED, "scales_ptr": "*u8", "BLOCK2": Constant(256)}
    yield "4 bits", "bnb_4bit", {**four, **_NOT_NESTED, "scales_ptr": "*fp32", "BLOCK2": Constant(0)}
    eight = {"q_ptr": "*u8", "scale_ptr": "*fp32", "factor": "fp32", **_SCALED}
    eight |= {name: Constant(getattr(dequantize_scaled, name)) for name in ("BLOCK_N", "BLOCK_K")}
    for kind, zero in (
        ("int8", Constant(None)),
        ("int8", "*i8"),
        ("e4m3", Constant(None)),
        ("e5m2", Constant(None)),
    ):
        name = kind if isinstance(zero, Constant) else f"{kind} with zero points"
        yield name, "scaled", {**eight, "zero_ptr": zero, "KIND": Constant(kind)}
    # Scales are in W's dtype there, but for a W that is to be merged in fp32.
    groups = {"scale_ptr": "*bf16", "zero_ptr": "*bf16", "columns": "i32", "rows_apart": "i32"}
    groups |= {"num_words": "i32", "num_entries": "i32", "WORDS": Constant(dequantize_hqq.WORDS)}
    for bits, fields in ((8, 1), (4, 2), (3, 10), (2, 4), (1, 8)):
        kinds = {
            "words_ptr": "*i32" if bits == 3 else "*u8",
            "BITS": Constant(bits),
            "FIELDS": Constant(fields),
        }
        yield f"HQQ in {bits} bits", "hqq", {**groups, **kinds, "GROUPS": Constant("rows")}
    fp4 = {"q_ptr": "*u8", "scale_ptr": "*u8", "num_bytes": "i32", "blocks": "i32"}
    fp4["BYTES"] = Constant(dequantize_fp4.BYTES)
    for swizzled in (True, False):
        layout = {**fp4, "SWIZZLED": Constant(swizzled)}
        where = "swizzled" if swizzled else "row by row"
        whole, kinds = {"whole_ptr": "*fp32"}, {"BLOCK": Constant(16), "POWERS": Constant(False)}
        yield f"NVFP4, {where}", "fp4", {**layout, **whole, **kinds}
        alone, kinds = {"whole_ptr": Constant(None)}, {"BLOCK": Constant(32), "POWERS": Constant(True)}
        yield f"MXFP4, {where}", "fp4", {**layout, **alone, **kinds}


def check_unpacking(case: Unpacking) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_unpacking, _faults)


def _faults(case: Unpacking, made: Resources) -> list[str]:
    # A scale is a product and a sum that round apart, and each value one product.
    fused = re.search(r"\bfma\.rn\S*\.f32|v_fmac?_f32|v_fma_f32", made.assembly)
    return [*faults_of_resources(made), *(["fuses a product and a sum"] if fused else [])]


def compile_unpacking(case: Unpacking) -> Resources:
    """Compile one kernel as it is launched."""
    return compile_with(case.kernel, case.kinds, {"enable_fp_fusion": False}, case.target)
