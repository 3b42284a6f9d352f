"""Compiles the kernels of projections that share x, with the tiles of single layers, and checks them."""

import itertools
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from triton.backends.compiler import GPUTarget

from fastlora_kernels.compile_check.compiler import (
    Constant,
    Resources,
    backward_kinds,
    checked,
    compile_with,
    forward_kinds,
)
from fastlora_kernels.compile_check.rules import faults
from fastlora_kernels.compile_check.variants import Case, representative_cases
from fastlora_kernels.configs import group_rank_block, launch_options, rank_block, takes_group
from fastlora_kernels.group_backward import group_backward_kernel
from fastlora_kernels.group_forward import group_forward_kernel
from fastlora_kernels.tables import Tile

# Arguments of which there is one for each projection.
_EACH: Final = {
    "forward": ("W", "A", "B", "y", "s", "N", "r"),
    "backward": ("dy", "W", "A", "B", "s", "N", "r"),
}
# A tuple of those, and what it holds: what a single layer has under this name.
_TUPLES: Final = {
    "forward": {"b_ptrs": "b_ptr", "p_ptrs": "p_ptr"},
    "backward": {"p_ptrs": "p_ptr", "dB_ptrs": "dB_ptr"},
}
_KERNELS: Final = {"forward": group_forward_kernel, "backward": group_backward_kernel}


class GroupCase(NamedTuple):
    """One kernel to compile: that of a single layer, and for how many projections."""

    single: Case
    members: int

    @property
    def block_r(self) -> int:
        """Ranks in a block."""
        one = self.single.variant
        architecture = self.single.architecture
        block = rank_block(one.r, architecture, one.kind, one.wide_adapters, one.tf32_terms)
        forward = self.single.direction == "forward"
        return group_rank_block(block, architecture, one.tf32_terms) if forward else block

    @property
    def target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.single.target

    @property
    def tile(self) -> Tile:
        """Block shapes, warps and stages."""
        return self.single.tile

    def __str__(self) -> str:
        # Told apart from single layers' by `--only "half square, forward"` and the like.
        single = str(self.single).replace(f", {self.single.direction}", f": {self.single.direction}")
        return f"{single}, {self.members} projections"


def group_cases(architectures: list[str], *, every_variant: bool) -> Iterator[GroupCase]:
    """Representative kernels of three projections; or those of two as well, in every variant.

    There is no dropout in them.
    """
    seen = set()
    for case in representative_cases(architectures, every_variant=every_variant):
        single = case._replace(variant=case.variant._replace(dropout=False))
        one = single.variant
        fits = takes_group(single.direction, single.shape_class, one.wide_adapters, one.tf32_terms)
        if fits and single not in seen:
            seen.add(single)
            yield from (GroupCase(single, count) for count in ((3, 2) if every_variant else (3,)))


def check_group(case: GroupCase) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    return checked(case, compile_group, _faults)


def _faults(case: GroupCase, made: Resources) -> list[str]:
    # One program publishes p of all; each publishes its own q.
    publishing = case.members if case.single.direction == "backward" else 1
    return faults(case.single, made, case.block_r, publishing)


def compile_group(case: GroupCase) -> Resources:
    """Compile one kernel as it is launched."""
    kernel, kinds = _KERNELS[case.single.direction], _kinds(case)
    made = compile_with(kernel, kinds, launch_options(case.tile, case.target.backend), case.target)
    # What is handed over is p, of whichever projection, or q.
    arguments = ("p_ptr" if name.startswith("p_ptrs.") else name for name in made.arguments)
    return made._replace(arguments=tuple(arguments))


def _kinds(case: GroupCase) -> dict[str, Any]:
    direction = case.single.direction
    kinds_of = forward_kinds if direction == "forward" else backward_kinds
    single = kinds_of(case.single.architecture, case.tile, case.single.variant)
    single["BLOCK_R"] = Constant(case.block_r)
    kinds = dict(single)
    for name, place in itertools.product(_EACH[direction], range(3)):
        scalar = name in ("s", "N", "r")
        there = place < case.members or scalar
        kinds[f"{name}{place}"] = single[name] if there else Constant(None)
    for name, one in _TUPLES[direction].items():
        # Of a tuple that fills up with another's pointers, none is missing.
        missing = Constant(None) if name == "b_ptrs" else single[one]
        kinds[name] = tuple(single[one] if place < case.members else missing for place in range(3))
    return kinds
