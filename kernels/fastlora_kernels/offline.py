"""Compile the kernels for any GPU on any machine, and read what the compiler made of them."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlora_kernels.backward import backward_kernel
from fastlora_kernels.configs import launch_options, rank_block, store_columns
from fastlora_kernels.forward import forward_kernel
from fastlora_kernels.tables import Tile

TARGETS: Final = {
    "sm_80": [GPUTarget("cuda", 80, 32)],
    "sm_86": [GPUTarget("cuda", 86, 32), GPUTarget("cuda", 89, 32)],
    "sm_90": [GPUTarget("cuda", 90, 32)],
    "sm_100": [GPUTarget("cuda", 100, 32)],
    "gfx942": [GPUTarget("hip", "gfx942", 64)],
}


# As at run time for usual sizes: x, W and dy have rows of whole 16s, and strides like them.
_DIVISIBLE: Final = (
    *("N", "K"),
    *("stride_xm", "stride_xk", "stride_wn", "stride_wk", "stride_dym", "stride_dyn"),
    *("stride_ar", "stride_ak", "stride_bn", "stride_br"),
)


class Variant(NamedTuple):
    """What a kernel is specialized for, besides its tile.

    Attributes:
        element: "bf16", "fp16" or "fp32", the dtype of x, W and b.
        adapter: The dtype of A and B.
        r: The rank.
        tma: Whether x, W and dy come through tensor descriptors.
        precision: "tf32" or "ieee", for fp32.
        dropout: Whether the low-rank branch has dropout.
        bias: Whether there is a bias; of the forward.
        cut: Whether y and dx tiles are cut into parts.
        tma_store: Whether y and dx go through tensor descriptors; None for as x, W and dy come.
    """

    element: str = "bf16"
    adapter: str = "bf16"
    r: int = 16
    tma: bool = False
    precision: str = "ieee"
    dropout: bool = False
    bias: bool = True
    cut: bool = False
    tma_store: bool | None = None

    @property
    def stores_through_tma(self) -> bool:
        """Whether y and dx go through tensor descriptors."""
        return self.tma if self.tma_store is None else self.tma_store

    @property
    def kind(self) -> str:
        """The element kind of the tile table."""
        return self.precision if self.element == "fp32" else "half"

    @property
    def split(self) -> bool:
        """Whether adapters are wider than x."""
        return self.adapter == "fp32" and self.element != "fp32"


class Resources(NamedTuple):
    """What one compiled kernel takes.

    Attributes:
        shared: Bytes of shared memory a program.
        registers: Registers a thread.
        spill: Bytes of stack a thread; anything above 0 is a spill.
        assembly: PTX or AMD assembly.
    """

    shared: int
    registers: int
    spill: int
    assembly: str


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
    constants = _constants(direction, architecture, tile, variant)
    signature = {}
    attributes = {}
    for index, name in enumerate(kernel.arg_names):
        kind = _kind(name, direction, tile, variant)
        if name in constants:
            kind = "constexpr"
        signature[name] = kind
        # As at run time for contiguous operands of usual sizes: aligned pointers, sizes divisible by 16.
        if kind.startswith("*") or (kind == "i32" and name in _DIVISIBLE):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = launch_options(tile, target.backend)
    compiled = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        registers, spill = _cuda_resources(compiled.asm["cubin"])
        return Resources(compiled.metadata.shared, registers, spill, compiled.asm["ptx"])
    assembly = compiled.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", assembly)[1])
    spill = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)[1])
    return Resources(compiled.metadata.shared, registers, spill, assembly)


def _constants(direction: str, architecture: str, tile: Tile, variant: Variant) -> dict:
    constants = {
        "BLOCK_M": tile.rows,
        "BLOCK_R": rank_block(variant.r, architecture, variant.kind, variant.split),
        "GROUP": tile.group,
        "CUT": variant.cut,
        "TMA": variant.tma,
        "TMA_STORE": variant.stores_through_tma,
        "DROPOUT": variant.dropout,
        "SPLIT": variant.split,
        "PRECISION": variant.precision,
        # The JIT makes a constant of every argument that is 1: the inner strides of contiguous operands.
        "stride_wk": 1,
        "stride_xk": 1,
        "stride_ak": 1,
        "stride_br": 1,
    }
    if not variant.dropout:
        constants["seed_ptr"] = None
    if direction == "forward":
        if not variant.bias:
            constants["b_ptr"] = None
        return constants | {"BLOCK_N": tile.out, "BLOCK_K": tile.inner, "HAS_BIAS": variant.bias}
    need = {"NEED_DX": True, "NEED_DA": True, "NEED_DB": True}
    return constants | need | {"BLOCK_K": tile.out, "BLOCK_N": tile.inner, "stride_dyn": 1}


def _kind(name: str, direction: str, tile: Tile, variant: Variant) -> str:
    element = variant.element
    if name in ("x", "W", "dy"):
        if not variant.tma:
            return f"*{element}"
        inner_only = name == "W" and direction == "backward"
        rows = {"x": tile.rows, "dy": tile.rows, "W": tile.inner if inner_only else tile.out}[name]
        columns = tile.out if inner_only else tile.inner
        return f"tensordesc<{element}[{rows}, {columns}]>"
    if name in ("y", "dx"):
        columns = store_columns(tile, direction, variant.dropout)
        return (
            f"tensordesc<{element}[{tile.rows}, {columns}]>" if variant.stores_through_tma else f"*{element}"
        )
    if name in ("A_ptr", "B_ptr", "dA_ptr", "dB_ptr"):
        return f"*{variant.adapter}"
    if name in ("p_ptr", "q_ptr") or name.endswith("scratch_ptr"):
        return "*fp32"
    if name in ("workspace_ptr", "seed_ptr"):
        return "*i32" if name == "workspace_ptr" else "*i64"
    if name == "b_ptr":
        return f"*{element}"
    return "fp32" if name in ("s", "kept_scale") else "i32"


def _cuda_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from the compiled code itself."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])
