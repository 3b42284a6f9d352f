"""Compiles the persistent kernels for sm_90, on any machine, and checks the result.

Besides spills and shared memory, the registers that the partitions ask for must be there, and a step of the
main loop must stay short: its instructions are counted in what ptxas makes.
"""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from fastlora_kernels.compile_check.compiler import (
    SIXTEENS,
    Constant,
    faults_of_resources,
    parameters_of,
    resources_of,
    signature_of,
)
from fastlora_kernels.compile_check.variants import TARGETS
from fastlora_kernels.hopper import blocks as hopper
from fastlora_kernels.hopper.blocks import BLOCK_C, BLOCK_M, SHARED_MEMORY, STEP, Blocks, blocks_for

# A step has four products; the plain kernels' takes 87 instructions for them.
_MOST_INSTRUCTIONS: Final = 60
_REGISTERS: Final = 65_536


class Persistent(NamedTuple):
    """One kernel to compile: the pass, the dtypes of x and of A, the rank, and the target."""

    direction: str
    element: str
    adapter: str
    r: int
    target: GPUTarget

    def __str__(self) -> str:
        dtypes = f"{self.element} with {self.adapter} adapters"
        return f"{self.target.arch} persistent, {self.direction}, {dtypes}, r={self.r}"

    @property
    def blocks(self) -> Blocks:
        """Its blocks."""
        return blocks_for(self.r, self.adapter != self.element)


def persistent_cases(architectures: list[str], *, every_variant: bool) -> Iterator[Persistent]:
    """Each pass with what takes most registers and shared memory; or every dtype and block of ranks."""
    every = [("bf16", "bf16", 16), ("bf16", "bf16", 32), ("bf16", "bf16", 64), ("bf16", "fp32", 16)]
    every += [("bf16", "fp32", 32)]
    every += [("fp16", "fp16", 16), ("fp16", "fp16", 64)]
    if "sm_90" in architectures:
        for direction, one in itertools.product(("forward", "backward"), every):
            if every_variant or one == ("bf16", "bf16", 64):
                yield Persistent(direction, *one, TARGETS["sm_90"][0])


def check_persistent(case: Persistent) -> tuple[str, list[str]]:
    """Compile a kernel: (a line on its resources, its faults)."""
    try:
        kernel, kinds = _kernel_of(case)
        made = _compile(kernel, kinds, case.target)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    found = resources_of(made, case.target, parameters_of(kernel, kinds))
    steps = steps_of(disassembled(made.asm["cubin"]), f"64x{case.blocks.c}x16")
    line = f"{case}: {found.registers} registers, {found.shared} bytes shared, {found.spill} spilled"
    return f"{line}, {max(map(len, steps), default=0)} instructions a step", faults(found, steps)


def faults(made: Any, steps: list[list[str]]) -> list[str]:
    """The rules that a compiled kernel breaks, as phrases.

    Args:
        made: Its Resources.
        steps: The instructions of each copy of the main loop without a low-rank product.
    """
    found = faults_of_resources(made, SHARED_MEMORY)
    asked_for = 32 * hopper.WARPS * (2 * hopper.MULTIPLY_REGISTERS + hopper.LOAD_REGISTERS)
    if asked_for > _REGISTERS:
        found.append(f"asks for {asked_for} registers, the target has {_REGISTERS}")
    if str(hopper.MULTIPLY_REGISTERS) not in re.findall(r"setmaxnreg\S*\s+(\d+)", made.assembly):
        found.append("gives no registers from the loading warp to those that multiply")
    if not steps:
        found.append("has no main loop")
    elif (most := max(map(len, steps))) > _MOST_INSTRUCTIONS:
        found.append(f"takes {most} instructions a step, at most {_MOST_INSTRUCTIONS} are allowed")
    # ptxas does that to all products of a kernel if it cannot follow an accumulator of one of them.
    if any(sum("WARPGROUP.DEPBAR" in one for one in step) > 1 for step in steps):
        found.append("waits for each product before the next")
    return found


def steps_of(assembly: str, shape: str) -> list[list[str]]:
    """The instructions of each loop whose matrix products are one step's, all of a shape: "64x256x16"."""
    instructions, labels = instructions_of(assembly)
    loops = []
    for end, text in enumerate(instructions):
        target = re.search(r"BRA(?:\.\S+)?\s.*?(\.L_\w+)", text)
        if target and labels.get(target[1], end + 1) <= end:
            loops.append((labels[target[1]], end))
    # A loop from one epilogue to the next may have as many products; it stores.
    bodies = [
        body for body in (instructions[a : b + 1] for a, b in loops) if not any("STSM" in x for x in body)
    ]
    products = [[one for one in body if "HGMMA" in one] for body in bodies]
    return [
        body
        for body, found in zip(bodies, products, strict=True)
        if len(found) == STEP // 16 and all(shape in one for one in found)
    ]


def instructions_of(assembly: str) -> tuple[list[str], dict[str, int]]:
    """(the instructions, what number of them each label stands before)."""
    instructions: list[str] = []
    labels = {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\S+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            instructions.append(found[1])
    return instructions, labels


def disassembled(cubin: bytes) -> str:
    """A kernel as ptxas made it, as text."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout


def _compile(kernel: Any, kinds: dict[str, Any], target: GPUTarget) -> Any:
    from triton.experimental.gluon._runtime import GluonASTSource

    source = GluonASTSource(kernel, *signature_of(kernel, kinds))
    options = {"num_warps": hopper.WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def _kernel_of(case: Persistent) -> tuple[Any, dict[str, Any]]:
    """The kernel of a case, and the kind of each argument; Gluon is imported here alone."""
    blocks, element = case.blocks, case.element
    kinds = {
        "workspace_ptr": "*i32",
        "p_ptr": "*fp32",
        "s": "fp32",
        "M": "i32",
        "N": SIXTEENS,
        "K": SIXTEENS,
        "r": SIXTEENS,
        "BLOCK_M": Constant(BLOCK_M),
        "BLOCK_C": Constant(BLOCK_C),
        "STEP": Constant(STEP),
        "BLOCK_R": Constant(blocks.r),
        "TERMS": Constant(blocks.terms),
        "STORE": Constant(blocks.store),
        "BUFFERS": Constant(blocks.buffers),
        "GROUP": Constant(blocks.group),
        "STAGES": Constant(blocks.stages),
        "MULTIPLY_REGISTERS": Constant(hopper.MULTIPLY_REGISTERS),
        "LOAD_REGISTERS": Constant(hopper.LOAD_REGISTERS),
    }
    if case.direction == "forward":
        from fastlora_kernels.hopper.forward import hopper_forward_kernel

        scale = "fp32" if element == "fp16" else Constant(None)
        return hopper_forward_kernel, kinds | {
            "x": _kind(element, BLOCK_M, STEP),
            "W": _kind(element, BLOCK_C, STEP),
            "A": _kind(element, blocks.r, STEP),
            "B": _kind(element, BLOCK_C, STEP),
            "y": _kind(element, BLOCK_M // 2, blocks.store),
            "b_ptr": f"*{element}",
            "power": scale,
            "inverse": scale,
        }
    from fastlora_kernels.hopper.backward import hopper_backward_kernel

    return hopper_backward_kernel, kinds | {
        "dy": _kind(element, BLOCK_M, STEP),
        "x": _kind(element, BLOCK_M, STEP),
        "W": _kind(element, STEP, BLOCK_C),
        "A": _kind(element, STEP, BLOCK_C),
        "B": _kind(element, STEP, blocks.r),
        "dx": _kind(element, BLOCK_M // 2, blocks.store),
        "terms": _kind(element, BLOCK_M, blocks.r),
        "terms_ptr": f"*{element}",
        "dA_ptr": f"*{case.adapter}",
        "sums_ptr": "*fp32",
        "dB_ptr": f"*{case.adapter}",
    }


def _kind(element: str, rows: int, columns: int) -> str:
    """The kind of a matrix in blocks [rows, columns]."""
    from triton.experimental.gluon import language as gl

    layout = gl.NVMMASharedLayout(min(128, 2 * columns), 16, 2)
    return f"tensordesc<{element}[{rows},{columns}],{layout!r}>"
