"""Compiles the kernel of projections that share x, with the tiles of single layers, and checks the result."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlora_kernels.compile_check.compiler import (
    Constant,
    Resources,
    forward_kinds,
    parameters_of,
    resources_of,
    signature_of,
)
from fastlora_kernels.compile_check.rules import faults
from fastlora_kernels.compile_check.variants import Case, cases
from fastlora_kernels.configs import group_rank_block, launch_options, rank_block, takes_group
from fastlora_kernels.group_forward import group_forward_kernel
from fastlora_kernels.tables import Tile

# Arguments of which there is one for each projection.
_MEMBERS: Final = {"W": "W", "A": "A", "B": "B", "y": "y", "s": "s", "N": "N", "r": "r"}


class GroupCase(NamedTuple):
    """One kernel to compile: that of a single layer, and for how many projections."""

    single: Case
    members: int

    @property
    def block_r(self) -> int:
        """Ranks in a block."""
        one = self.single.variant
        block = rank_block(one.r, self.single.architecture, one.kind, one.wide_adapters, one.tf32_terms)
        return group_rank_block(block, one.tf32_terms)

    @property
    def target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.single.target

    @property
    def tile(self) -> Tile:
        """Block shapes, warps and stages."""
        return self.single.tile

    def __str__(self) -> str:
        return f"{str(self.single).replace(', forward', '')}, {self.members} projections"


def group_cases(architectures: list[str], *, every_variant: bool) -> Iterator[GroupCase]:
    """The most demanding kernels of three projections; or those of two as well, in every variant.

    There is no dropout in them.
    """
    seen = set()
    for case in cases(architectures, every_variant=every_variant):
        single = case._replace(variant=case.variant._replace(dropout=False))
        fits = takes_group(single.shape_class == "few", single.variant.wide_adapters)
        if single.direction == "forward" and fits and single not in seen:
            seen.add(single)
            yield from (GroupCase(single, count) for count in ((3, 2) if every_variant else (3,)))


def check_group(case: GroupCase) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    try:
        made = compile_group(case)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    line = f"{case}: {made.registers} registers, {made.shared} bytes shared, {made.spill} spilled"
    return line, faults(case.single, made, case.block_r)


def compile_group(case: GroupCase) -> Resources:
    """Compile one kernel as it is launched."""
    kernel, kinds = group_forward_kernel, _kinds(case)
    source = ASTSource(kernel, *signature_of(kernel, kinds))
    options = launch_options(case.tile, case.target.backend)
    compiled = triton.compile(source, target=case.target, options=options)
    # What is handed over is p, of whichever projection.
    arguments = ("p_ptr" if name.startswith("p_ptrs.") else name for name in parameters_of(kernel, kinds))
    return resources_of(compiled, case.target, tuple(arguments))


def _kinds(case: GroupCase) -> dict[str, Any]:
    single = forward_kinds(case.single.architecture, case.tile, case.single.variant)
    single |= {"BLOCK_R": Constant(case.block_r), "W": single["W"]}
    kinds = {name: kind for name, kind in single.items() if name not in (*_MEMBERS, "b_ptr", "p_ptr")}
    for name in _MEMBERS:
        kinds |= {f"{name}{place}": single[name] for place in range(case.members)}
    absent = {"W2": None, "A2": None, "B2": None, "y2": None}
    if case.members == 2:
        kinds |= {name: Constant(value) for name, value in absent.items()}
        kinds |= {"N2": "i32", "r2": "i32", "s2": "fp32"}
    kinds["r"] = single["r"]
    there = [place < case.members for place in range(3)]
    kinds["b_ptrs"] = tuple(single["b_ptr"] if one else Constant(None) for one in there)
    kinds["p_ptrs"] = tuple("*fp32" if one else Constant(None) for one in there)
    return kinds
