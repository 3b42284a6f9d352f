"""Compiles the persistent kernels in plain Triton for sm_90, on any machine, and checks the result.

Besides spills and shared memory, Triton must have flattened the loop over tiles: a step of its loop then has
no epilogue, loads the blocks of the step after next, and no tile loads first blocks of its own.
"""

import itertools
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlora_kernels.compile_check.compiler import (
    SIXTEENS,
    Constant,
    faults_of_resources,
    parameters_of,
    resources_of,
    signature_of,
)
from fastlora_kernels.compile_check.persistent import disassembled, instructions_of
from fastlora_kernels.compile_check.variants import TARGETS
from fastlora_kernels.configs import launch_options
from fastlora_kernels.flattened import flattened_backward_kernel, flattened_forward_kernel
from fastlora_kernels.flattened_blocks import TILES, block_of_ranks
from fastlora_kernels.hopper.blocks import SHARED_MEMORY

# A step has four products; the plain kernels' takes 87 instructions for them.
_MOST_INSTRUCTIONS: Final = 120
_PRODUCTS: Final = 4
_SHAPE: Final = "HGMMA.64x256x16"


class Flattened(NamedTuple):
    """One kernel to compile: the pass, the dtypes of x and of A, the rank, and the target."""

    direction: str
    element: str
    adapter: str
    r: int
    target: GPUTarget

    def __str__(self) -> str:
        dtypes = f"{self.element} with {self.adapter} adapters"
        return f"{self.target.arch} flattened, {self.direction}, {dtypes}, r={self.r}"


class Step(NamedTuple):
    """The main loop, as ptxas made it.

    Attributes:
        instructions: On the shortest way from a step to the next.
        products: Of the full shape among them.
        loads: By TMA among them.
        loads_of_tiles: By TMA in the whole loop over tiles.
        loads_ahead: By TMA outside of all loops.
    """

    instructions: int
    products: int
    loads: int
    loads_of_tiles: int
    loads_ahead: int


def flattened_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Flattened]:
    """Each pass with what takes most registers; or every dtype and block of ranks."""
    every = [("bf16", "bf16", 16), ("bf16", "bf16", 32), ("bf16", "fp32", 16), ("fp16", "fp16", 32)]
    if "sm_90" in architectures:
        for direction, one in itertools.product(TILES, every):
            if every_variant or one == ("bf16", "bf16", 32):
                yield Flattened(direction, *one, TARGETS["sm_90"][0])


def check_flattened(case: Flattened) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    kernel, kinds = _kernel_of(case)
    options = launch_options(TILES[case.direction], "cuda")
    try:
        source = ASTSource(kernel, *signature_of(kernel, kinds))
        made = triton.compile(source, target=case.target, options=options)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    found = resources_of(made, case.target, parameters_of(kernel, kinds))
    step = step_of(disassembled(made.asm["cubin"]))
    line = f"{case}: {found.registers} registers, {found.shared} bytes shared, {found.spill} spilled"
    return f"{line}, {step.instructions if step else 0} instructions a step", faults(found, step)


def faults(made: Any, step: Step | None) -> list[str]:
    """The rules that a compiled kernel breaks, as phrases; `made` is its Resources."""
    found = faults_of_resources(made, SHARED_MEMORY)
    if step is None:
        return [*found, "has no main loop"]
    if step.products != _PRODUCTS:
        found.append(f"has {step.products} products a step, not {_PRODUCTS}")
    if step.instructions > _MOST_INSTRUCTIONS:
        found.append(
            f"takes {step.instructions} instructions a step, at most {_MOST_INSTRUCTIONS} are allowed"
        )
    if step.loads != 2 or step.loads_of_tiles != 2:
        found.append(f"loads {step.loads_of_tiles} blocks of x and W at a tile, {step.loads} of them a step")
    # A step's two for each stage but the last.
    ahead = 2 * (TILES["forward"].num_stages - 1)
    if step.loads_ahead != ahead:
        found.append(f"has {step.loads_ahead} loads under way before the first step, not {ahead}")
    return found


def step_of(assembly: str) -> Step | None:
    """The main loop in ptxas' assembly; None if there is none."""
    instructions, labels = instructions_of(assembly)
    following = [_following(number, text, labels) for number, text in enumerate(instructions)]
    starts = [number for number, text in enumerate(instructions) if _SHAPE in text]
    ways = [way for start in starts if (way := _way_round(start, following))]
    if not ways:
        return None
    way = min(ways, key=len)
    loads = [number for number, text in enumerate(instructions) if "UTMALDG" in text]
    after = {other for other, _ in _reached(way[0], following)}
    leading = [one for one in loads if way[0] in {other for other, _ in _reached(one, following)}]
    return Step(
        len(way),
        sum(_SHAPE in instructions[one] for one in way),
        len({*loads} & {*way}),
        len({*leading} & after),
        sum(not _way_round(one, following) for one in leading),
    )


def _following(number: int, text: str, labels: dict[str, int]) -> list[int]:
    """Where an instruction goes on."""
    target = re.search(r"\bBRA(?:\.\S+)?\s.*?(\.L_\w+)", text)
    leaves = target or "EXIT" in text
    ways = [labels[target[1]]] if target else []
    return ways if leaves and not re.match(r"\{?\s*@", text) else [*ways, number + 1]


def _reached(start: int, following: list[list[int]]) -> Iterator[tuple[int, int]]:
    """(an instruction that can run after `start`, the one before it on the shortest way), nearest first."""
    seen: set[int] = set()
    todo = deque([start])
    while todo:
        number = todo.popleft()
        for other in following[number] if number < len(following) else ():
            if other not in seen:
                seen.add(other)
                todo.append(other)
                yield other, number


def _way_round(start: int, following: list[list[int]]) -> list[int]:
    """The fewest instructions from one back to itself; empty if it is in no loop."""
    before = dict(_reached(start, following))
    if start not in before:
        return []
    way = [before[start]]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def _kernel_of(case: Flattened) -> tuple[Any, dict[str, Any]]:
    """The kernel of a case, and the kind of each argument."""
    tile, element = TILES[case.direction], case.element
    sizes = SIXTEENS if case.r > 16 else "i32"  # of K and N, see flattened_blocks.most_ranks
    M, N, K = tile.block_m, tile.block_n, tile.block_k
    kinds = {
        "A": (f"*{case.adapter}", sizes, Constant(1)),
        "B": (f"*{case.adapter}", "i32", Constant(1)),
        "W": f"tensordesc<{element}[{N}, {K}]>",
        "p_ptr": "*fp32",
        "workspace_ptr": "*i32",
        "s": "fp32",
        "M": "i32",
        "N": sizes,
        "K": sizes,
        "r": "i32",
        "num_tickets": "i32",
        "rows_a_ticket": "i32",
        "BLOCK_M": Constant(M),
        "BLOCK_N": Constant(N),
        "BLOCK_K": Constant(K),
        "BLOCK_R": Constant(block_of_ranks(case.r)),
        "GROUP": Constant(tile.group),
    }
    if case.direction == "forward":
        scale = "fp32" if element == "fp16" else Constant(None)
        return flattened_forward_kernel, kinds | {
            "x": f"tensordesc<{element}[{M}, {K}]>",
            "y": f"tensordesc<{element}[{M}, {N}]>",
            "b_ptr": f"*{element}",
            "power": scale,
            "inverse": scale,
        }
    return flattened_backward_kernel, kinds | {
        "dy": f"tensordesc<{element}[{M}, {N}]>",
        "x": f"tensordesc<{element}[{M}, {N}]>",
        "dx": f"tensordesc<{element}[{M}, {K}]>",
        "q_ptr": "*fp32",
        "dA_ptr": f"*{case.adapter}",
        "dB_ptr": f"*{case.adapter}",
    }
