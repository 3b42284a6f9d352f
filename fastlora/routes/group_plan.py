"""The launch plan of projections that share x: the tile of their columns together, and the group's tasks."""

from __future__ import annotations

import functools
from typing import NamedTuple

from fastlora.formula.cost import Problem
from fastlora.formula.grouped import Grouped
from fastlora.formula.operands import outranges_fp16
from fastlora.routes.plan import Plan, plan_for
from fastlora_kernels import configs, tasks
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.tables import Tile


class GroupPlan(NamedTuple):
    """How one launch computes all of them.

    Attributes:
        single: The plan of a layer with their columns together, whose tile and options are taken.
        block_r: Ranks in a block.
        split_p: Programs that share a p tile.
        split_y: Programs that share a y tile.
        num_tasks: Programs of the launch.
        workspace: Number of int32 counters that the programs share.
        scratch_p: fp32 elements of scratch for the splits of p tiles; 0 if none is split.
        scratch_y: The same for y tiles.
    """

    single: Plan
    block_r: int
    split_p: int
    split_y: int
    num_tasks: int
    workspace: int
    scratch_p: int
    scratch_y: int


def fits(o: Grouped) -> bool:
    """Whether the kernel has the registers for these operands."""
    wide = any(one.A is not None and one.A.dtype != o.x.dtype for one in o.members)
    return configs.takes_group(o.x.shape[0] <= configs.FEW_ROWS, wide)


@functools.lru_cache(maxsize=8192)
def group_plan(
    architecture: str,
    problem: Problem,
    columns: tuple[int, ...],
    aligned: bool,
    precision: str,
    tile: Tile | None = None,
) -> GroupPlan:
    """The plan of a forward pass.

    Args:
        architecture: The tile table's name.
        problem: Of all: N is the sum of their columns, r the largest of their ranks.
        columns: N of each.
        aligned: Whether TMA can address the operands.
        precision: torch's float32 matmul precision, by which `plan_for` chooses.
        tile: A tile to use; None means the table's.
    """
    single = plan_for("forward", architecture, problem, tile=tile, aligned=aligned)
    tile, table = single.tile, configs.table_of(architecture)
    block_r = configs.group_rank_block(single.block_r, outranges_fp16(problem.adapter_dtype, problem.dtype))
    N0, N1, N2 = (*columns, 0)[:3]
    tiles = tasks.group_forward_tiles(problem.M, N0, N1, N2, problem.r, tile.block_m, tile.block_n, block_r)
    steps = num_blocks(problem.K, tile.block_k)
    split_p, split_y = (configs.split_k(table, count, steps) for count in (tiles.p, tiles.y))
    return GroupPlan(
        single=single,
        block_r=block_r,
        split_p=split_p,
        split_y=split_y,
        num_tasks=tasks.forward_tickets(tiles, split_p, split_y).end,
        workspace=tasks.forward_counters(tiles).end,
        scratch_p=3 * tiles.p * split_p * tile.block_m * block_r if split_p > 1 else 0,
        scratch_y=tiles.y * split_y * tile.block_m * tile.block_n if split_y > 1 else 0,
    )
