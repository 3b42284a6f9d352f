"""The launch plan of a call: tiles, tasks and kernel variant, looked up in the tile tables.

It needs neither Triton nor a GPU, so that `explain` can describe what another machine would do.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

import torch

from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, Needs, outranges_fp16
from fastlora.routes.architecture import architecture_of, fp32_precision
from fastlora.routes.choices import chosen, forget_choices
from fastlora.routes.programs import backward_programs, forward_programs
from fastlora_kernels import configs
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.split_counts import split_k
from fastlora_kernels.tables import Entry, Tile, load_table

# Up to so many rows a packed W is unpacked inside the product, and in tiles of so many columns.
PACKED_ROWS: Final = configs.PACKED_ROWS
PACKED_COLUMNS: Final = configs.PACKED_TILE.block_k


class Plan(NamedTuple):
    """How a call is launched.

    Attributes:
        direction: "forward" or "backward".
        shape_class: The class of the output's shape in the tile table.
        tile: Block shapes, warps and stages.
        block_r: Ranks in a block.
        tasks: Number of programs by what they compute: "p" and "y" forward; "q", "dx", "dA" and "dB"
            backward.
        split_k: How many programs share one tile, by the same names.
        num_tasks: Programs of the launch.
        workspace: Number of int32 counters that the programs share.
        tma: Whether operands are loaded through tensor descriptors; aligned results are stored so too.
        store_columns: Columns of the block in which a y or dx tile is stored.
        precision: Of fp32 products: "ieee" or "tf32".
        options: Compiler options.
    """

    direction: str
    shape_class: str
    tile: Tile
    block_r: int
    tasks: dict[str, int]
    split_k: dict[str, int]
    num_tasks: int
    workspace: int
    tma: bool
    store_columns: int
    precision: str
    options: dict[str, int | bool]

    def scratch_size(self, *names: str) -> int:
        """fp32 elements of scratch for the split-K partial tiles of these tasks; 0 if none is split."""
        tile = self.tile
        sizes = {
            "p": (tile.block_m, self.block_r),
            "y": (tile.block_m, tile.block_n),
            "q": (tile.block_m, self.block_r),
            "dx": (tile.block_m, tile.block_k),
            "dB": (tile.block_n, self.block_r),
            "dA": (tile.block_k_dA, self.block_r),
        }
        shared = (name for name in names if self.split_k[name] > 1)
        return sum(self.tasks[name] * math.prod(sizes[name]) for name in shared)


def plan_for(
    direction: str,
    architecture: str,
    problem: Problem,
    needs: Needs = EVERYTHING,
    tile: Tile | None = None,
    *,
    dropout: float = 0.0,
    aligned: bool = True,
    measured: bool = True,
    multiprocessors: int | None = None,
) -> Plan:
    """The plan for an architecture of the tile tables, which need not be this machine's.

    Args:
        direction: "forward" or "backward".
        architecture: The table's name.
        problem: Shape and dtypes.
        needs: Which gradients a backward pass computes.
        tile: A tile to use; None means the one that `fastlora tune` chose here, else the table's.
        dropout: Probability of dropping an entry of x_d.
        aligned: Whether TMA can address the operands.
        measured: Whether what was measured on this machine counts.
        multiprocessors: Of the GPU; None means those of the architecture's usual one.
    """
    dropped = dropout_constants(dropout)[0] > 0
    rest = needs, tile, dropped, fp32_precision(), aligned, measured, multiprocessors
    return _cached_plan(direction, architecture, problem, *rest)


def p_alone_plan(
    architecture: str,
    problem: Problem,
    *,
    dropout: float,
    aligned: bool,
    multiprocessors: int | None = None,
) -> Plan:
    """The plan of a forward pass whose programs of p alone are launched: they have the whole GPU."""
    plan = plan_for(
        "forward",
        architecture,
        problem,
        dropout=dropout,
        aligned=aligned,
        multiprocessors=multiprocessors,
    )
    tiles, steps = plan.tasks["p"] // plan.split_k["p"], num_blocks(problem.K, plan.tile.block_k)
    split = split_k(configs.table_of(architecture, multiprocessors), tiles, steps)
    return plan._replace(split_k=plan.split_k | {"p": split}, tasks=plan.tasks | {"p": tiles * split})


def few_rows_plan(
    architecture: str, problem: Problem, dropout: float = 0.0, multiprocessors: int | None = None
) -> Plan:
    """The plan of a forward pass with few rows over a packed W, which is unpacked inside the product."""
    plan = plan_for(
        "forward",
        architecture,
        problem,
        tile=configs.PACKED_TILE,
        dropout=dropout,
        aligned=False,
        multiprocessors=multiprocessors,
    )
    permuted = architecture.startswith("sm_")
    return plan._replace(options={**plan.options, "enable_fp_fusion": False, "PERMUTED": permuted})


def vendor_won(direction: str, architecture: str, problem: Problem, *, aligned: bool = True) -> str | None:
    """The shape class, if the vendor's matrix product was measured to be faster for it; else None.

    Measurements are without dropout and with every gradient needed. One counts only for its dtypes and rank.
    """
    name, entry, _ = entry_of(direction, architecture, problem, fp32_precision(), aligned)
    dtypes = dtype_name(problem.dtype), dtype_name(problem.adapter_dtype)
    return name if configs.beaten(entry, direction, *dtypes, problem.r) else None


def entry_of(
    direction: str, architecture: str, problem: Problem, precision: str, aligned: bool
) -> tuple[str, Entry, str]:
    """(shape class of the output, its entry in the table, element kind)."""
    table = configs.table_of(architecture)
    kind = configs.element_kind(torch.finfo(problem.dtype).bits, precision)
    columns = problem.N if direction == "forward" else problem.K
    tma = aligned and configs.takes_tma(architecture, kind)
    name = configs.shape_class(table, kind, problem.M, columns, direction, tma=tma)
    return name, table.entries[kind][name], kind


# Large, because sequence lengths vary from batch to batch.
@functools.lru_cache(maxsize=8192)
def _cached_plan(
    direction: str,
    architecture: str,
    problem: Problem,
    needs: Needs,
    tile: Tile | None,
    dropped: bool,
    precision: str,
    aligned: bool,
    measured: bool,
    multiprocessors: int | None,
) -> Plan:
    name, entry, kind = entry_of(direction, architecture, problem, precision, aligned)
    table = configs.table_of(architecture, multiprocessors)
    x, adapter = problem.dtype, problem.adapter_dtype
    tf32_terms = outranges_fp16(adapter, x)
    wide_adapters = adapter.itemsize > x.itemsize or tf32_terms
    if tile is None and measured:
        choice, _ = chosen(direction, architecture, problem, dropout=dropped, aligned=aligned)
        tile = None if choice is None else choice.tile
    tile = tile or getattr(entry, direction)
    masked_rows = tile.block_m if dropped else 0
    block_r = configs.rank_block(problem.r, architecture, kind, wide_adapters, tf32_terms, masked_rows)
    make_tasks = forward_programs if direction == "forward" else backward_programs
    split_k, programs, num_tasks, workspace = make_tasks(table, tile, block_r, problem, needs)
    return Plan(
        direction=direction,
        shape_class=name,
        tile=tile,
        block_r=block_r,
        tasks=programs,
        split_k=split_k,
        num_tasks=num_tasks,
        workspace=workspace,
        tma=aligned and configs.takes_tma(architecture, kind),
        store_columns=configs.store_columns(tile, direction, dropped),
        precision=precision,
        options=configs.launch_options(tile, "hip" if architecture.startswith("gfx") else "cuda"),
    )


def forget_plans() -> None:
    """Have the tile tables and the choices read again."""
    load_table.cache_clear()
    architecture_of.cache_clear()
    forget_choices()
    _cached_plan.cache_clear()
