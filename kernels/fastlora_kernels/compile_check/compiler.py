"""Compiles the kernels for any GPU on any machine, and reads the resources that the result takes."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlora_kernels.backward import backward_kernel
from fastlora_kernels.compile_check.variants import Variant
from fastlora_kernels.configs import launch_options, store_columns
from fastlora_kernels.forward import forward_kernel
from fastlora_kernels.tables import Tile

# A size or stride that is a multiple of 16, as most are; "i32" stands for any.
SIXTEENS: Final = "i32 of 16s"


class Constant(NamedTuple):
    """An argument that the JIT compiles in as a constant: None, 1, or a constexpr."""

    value: object


class Resources(NamedTuple):
    """The resources of one compiled kernel.

    Attributes:
        shared: Bytes of shared memory a program.
        registers: Registers a thread.
        spill: Bytes of stack a thread; anything above 0 is a spill.
        assembly: PTX or AMD assembly.
        arguments: What the parameters in PTX are, in order, such as "p_ptr", or "scratch_ptrs.0" for the
            first of several.
    """

    shared: int
    registers: int
    spill: int
    assembly: str
    arguments: tuple[str, ...]


def compile_kernel(
    direction: str, architecture: str, tile: Tile, variant: Variant, target: GPUTarget
) -> Resources:
    """Compile one pass for `target`.

    Args:
        direction: "forward" or "backward".
        architecture: The tile table's name for the target.
        tile: Block shapes, warps and stages.
        variant: Dtypes, rank and how operands are loaded.
        target: The GPU to compile for.
    """
    kernel = forward_kernel if direction == "forward" else backward_kernel
    kinds = (forward_kinds if direction == "forward" else backward_kinds)(architecture, tile, variant)
    return compile_with(kernel, kinds, launch_options(tile, target.backend), target)


def compile_with(kernel: Any, kinds: dict[str, Any], options: dict[str, Any], target: GPUTarget) -> Resources:
    """Compile a kernel whose arguments are of these kinds, with the options of its launch."""
    source = ASTSource(kernel, *signature_of(kernel, kinds))
    compiled = triton.compile(source, target=target, options=options)
    return resources_of(compiled, target, parameters_of(kernel, kinds))


def checked(
    case: Any, make: Callable[[Any], Resources], faults_of: Callable[[Any, Resources], list[str]]
) -> tuple[str, list[str]]:
    """A line on the resources of a case, and its faults, as phrases; not to compile is one.

    Args:
        case: What is compiled; its `str()` begins the line.
        make: Compiles it.
        faults_of: The rules that the result breaks.
    """
    try:
        made = make(case)
    except Exception as error:
        return f"{case}: {type(error).__name__}", [str(error).splitlines()[0]]
    line = f"{case}: {made.registers} registers, {made.shared} bytes shared, {made.spill} spilled"
    return line, faults_of(case, made)


def faults_of_resources(made: Resources, shared_memory: int | None = None) -> list[str]:
    """A spill, and more shared memory than the target has, as phrases."""
    found = [f"spills {made.spill} bytes"] if made.spill else []
    if shared_memory is not None and made.shared > shared_memory:
        found.append(f"takes {made.shared} bytes of shared memory, the target has {shared_memory}")
    return found


def signature_of(kernel: Any, kinds: dict[str, Any]) -> tuple[dict[str, Any], dict, dict]:
    """Signature, constants and attributes of a kernel whose arguments are of these kinds."""
    constants: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    signature = {
        name: _signature(kinds[name], (index,), constants, attributes)
        for index, name in enumerate(kernel.arg_names)
    }
    return signature, constants, attributes


def resources_of(compiled: Any, target: GPUTarget, arguments: tuple[str, ...]) -> Resources:
    """What a compiled kernel takes; `arguments` are its parameters' names."""
    if target.backend == "cuda":
        registers, spill = _cuda_resources(compiled.asm["cubin"])
        return Resources(compiled.metadata.shared, registers, spill, compiled.asm["ptx"], arguments)
    assembly = compiled.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1])
    spill = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)[1])
    return Resources(compiled.metadata.shared, registers, spill, assembly, arguments)


def parameters_of(kernel: Any, kinds: dict[str, Any]) -> tuple[str, ...]:
    """The names of a compiled kernel's parameters, in order."""
    return tuple(name for key in kernel.arg_names for name in _parameters(key, kinds[key]))


def _signature(kind: Any, path: tuple[int, ...], constants: dict, attributes: dict) -> Any:
    """One argument's entry of the signature; adds its constants and attributes to the two dicts."""
    if isinstance(kind, Constant):
        constants[path] = kind.value
        return "constexpr"
    if isinstance(kind, tuple):
        return tuple(_signature(inner, (*path, i), constants, attributes) for i, inner in enumerate(kind))
    if kind.startswith("*") or kind == SIXTEENS:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if kind == SIXTEENS else kind


def _parameters(name: str, kind: Any) -> Iterator[str]:
    """The compiled kernel's parameters for one argument."""
    if isinstance(kind, Constant):
        return
    if isinstance(kind, tuple):
        for index, inner in enumerate(kind):
            yield from _parameters(f"{name}.{index}", inner)
    elif kind.startswith("tensordesc"):
        # The tensor map, two sizes and two strides.
        yield from (f"{name}.{part}" for part in ("map", "rows", "columns", "row_stride", "column_stride"))
    else:
        yield name


def forward_kinds(architecture: str, tile: Tile, variant: Variant) -> dict[str, Any]:
    """The kind of every argument of the forward kernel."""
    M, N, K = tile.block_m, tile.block_n, tile.block_k
    y = _written(variant, M, store_columns(tile, "forward", variant.dropout))
    return kinds_of_both(architecture, tile, variant) | {
        "x": kind_read(variant, M, K),
        "W": kind_read(variant, N, K),
        "b_ptr": f"*{variant.element}" if variant.bias else Constant(None),
        "y": y,
        "z": y if variant.dora else Constant(None),
        "scratch_ptrs": ("*fp32", "*fp32" if variant.split_k else Constant(None)),
        "split_p": "i32",
        "split_y": "i32",
    }


def backward_kinds(architecture: str, tile: Tile, variant: Variant) -> dict[str, Any]:
    """The kind of every argument of the backward kernel."""
    M, N, K = tile.block_m, tile.block_n, tile.block_k
    return kinds_of_both(architecture, tile, variant) | {
        "dy": kind_read(variant, M, N),
        "x": kind_read(variant, M, tile.block_k_dA),
        "W": kind_read(variant, N, K),
        "q_ptr": "*fp32",
        "dx": _written(variant, M, store_columns(tile, "backward", variant.dropout)),
        "dA_ptr": f"*{variant.adapter}",
        "dB_ptr": f"*{variant.adapter}",
        "scratch_ptrs": ("*fp32", "*fp32" if variant.split_k else Constant(None), "*fp32"),
        "split_q": "i32",
        "split_dx": "i32",
        "split_gradients": "i32",
        "BLOCK_K_DA": Constant(tile.block_k_dA),
    }


def kinds_of_both(architecture: str, tile: Tile, variant: Variant) -> dict[str, Any]:
    """The kinds of the arguments that both kernels have."""
    adapter = (f"*{variant.adapter}", SIXTEENS, Constant(1))
    return {
        "A": adapter,
        "B": adapter,
        "c_ptr": "*fp32" if variant.dora else Constant(None),
        "p_ptr": "*fp32",
        "workspace_ptr": "*i32",
        "seed_ptr": "*i64" if variant.dropout else Constant(None),
        "threshold": "i32",
        "kept_scale": "fp32",
        "s": "fp32",
        "M": "i32",
        "N": SIXTEENS,
        "K": SIXTEENS,
        "r": "i32",
        "BLOCK_M": Constant(tile.block_m),
        "BLOCK_N": Constant(tile.block_n),
        "BLOCK_K": Constant(tile.block_k),
        "BLOCK_R": Constant(variant.block_r(architecture, tile)),
        "GROUP": Constant(tile.group),
        "PRECISION": Constant(variant.precision),
    }


def kind_read(variant: Variant, rows: int, columns: int) -> Any:
    """The kind of a matrix argument that is read in blocks [rows, columns]."""
    if variant.tma:
        return f"tensordesc<{variant.element}[{rows}, {columns}]>"
    return f"*{variant.element}", SIXTEENS, Constant(1)


def _written(variant: Variant, rows: int, columns: int) -> str:
    """The kind of a matrix argument that is written in blocks [rows, columns]."""
    if variant.stores_through_tma:
        return f"tensordesc<{variant.element}[{rows}, {columns}]>"
    return f"*{variant.element}"


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a thread, read from the compiled code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])
