"""The launch plan of projections that share x: the tile of their columns together, and the group's tasks."""

from __future__ import annotations

from typing import NamedTuple

from fastlora.formula.cost import Problem
from fastlora.formula.grouped import Grouped
from fastlora.formula.operands import outranges_fp16
from fastlora.routes.plan import Plan, plan_for
from fastlora_kernels import configs, tasks
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.split_counts import Blocks, Tiles, split_beside, split_k, split_of_q
from fastlora_kernels.tables import Table, Tile


class GroupPlan(NamedTuple):
    """How one launch computes a pass of all of them.

    Attributes:
        single: The plan of a layer with their columns together, whose tile and options are taken.
        block_r: Ranks in a block.
        split_k: How many programs share one tile: "p" and "y" forward; "q", "dx" and "gradients" backward.
        scratch: fp32 elements of scratch for the splits, by the same names; 0 if none is split.
        num_tasks: Programs of the launch.
        workspace: Number of int32 counters that the programs share.
    """

    single: Plan
    block_r: int
    split_k: dict[str, int]
    scratch: dict[str, int]
    num_tasks: int
    workspace: int


def fits(o: Grouped) -> bool:
    """Whether both kernels have the registers for these operands."""
    wide = any(one.A is not None and one.A.dtype != o.x.dtype for one in o.members)
    M, K = o.x.shape
    tf32 = any(one.A is not None and outranges_fp16(one.A.dtype, o.x.dtype) for one in o.members)
    forward = "few" if M <= configs.FEW_ROWS else ""
    backward = "narrow" if K <= configs.NARROW_COLUMNS else ""
    return configs.takes_group("forward", forward, wide, tf32) and configs.takes_group(
        "backward", backward, wide, tf32
    )


def group_plan(
    direction: str,
    architecture: str,
    problem: Problem,
    columns: tuple[int, ...],
    aligned: bool,
    tile: Tile | None = None,
    multiprocessors: int | None = None,
) -> GroupPlan:
    """The plan of a pass that needs every gradient.

    Args:
        direction: "forward" or "backward".
        architecture: The tile table's name.
        problem: Of all: N is the sum of their columns, r the largest of their ranks.
        columns: N of each.
        aligned: Whether TMA can address the operands.
        tile: A tile to use; None means the table's.
        multiprocessors: As in `plan_for`.
    """
    # What `fastlora tune` measured is a single layer.
    single = plan_for(direction, architecture, problem, tile=tile, aligned=aligned, measured=False)
    table = configs.table_of(architecture, multiprocessors)
    if direction == "forward":
        terms = outranges_fp16(problem.adapter_dtype, problem.dtype)
        block_r = configs.group_rank_block(single.block_r, architecture, terms)
        return _forward_plan(single, table, problem, columns, block_r)
    return _backward_plan(single, table, problem, columns)


def _forward_plan(
    single: Plan, table: Table, problem: Problem, columns: tuple[int, ...], block_r: int
) -> GroupPlan:
    tile = single.tile
    N0, N1, N2 = (*columns, 0)[:3]
    tiles = tasks.group_forward_tiles(problem.M, N0, N1, N2, problem.r, tile.block_m, tile.block_n, block_r)
    steps = num_blocks(problem.K, tile.block_k)
    p, y = Tiles(tiles.p, steps, 3 * block_r), Tiles(tiles.y, steps, tile.block_n)
    blocks = Blocks(tile.block_m, tile.block_k, problem.dtype.itemsize)
    split = {"p": split_beside(table, p, y, blocks), "y": split_k(table, tiles.y, steps)}
    sizes = {
        "p": (tiles.p, 3 * tile.block_m * block_r),
        "y": (tiles.y, tile.block_m * tile.block_n),
    }
    return GroupPlan(
        single=single,
        block_r=block_r,
        split_k=split,
        scratch=_scratch(split, sizes),
        num_tasks=tasks.forward_tickets(tiles, split["p"], split["y"]).end,
        workspace=tasks.forward_counters(tiles).end,
    )


def _backward_plan(single: Plan, table: Table, problem: Problem, columns: tuple[int, ...]) -> GroupPlan:
    M, K, N, r = problem[:4]
    tile, block_r = single.tile, single.block_r
    N0, N1, N2 = (*columns, 0)[:3]
    shape = (tile.block_m, tile.block_n, tile.block_k, block_r, tile.block_k_dA)
    tiles = tasks.group_backward_tiles(M, N0, N1, N2, K, r, len(columns), *shape)
    q = Tiles(tiles.q, num_blocks(max(columns), tile.block_n), block_r)
    dx = Tiles(tiles.dx, sum(num_blocks(each, tile.block_n) for each in columns), tile.block_k)
    gradients = split_k(table, tiles.dB + tiles.dA, num_blocks(M, tile.block_m))
    split_dx = split_k(table, dx.count, dx.steps)
    whole_q = tasks.backward_tickets(tiles, M, N, 1, split_dx, gradients)
    blocks = Blocks(tile.block_m, tile.block_n, problem.dtype.itemsize)
    split = {"q": split_of_q(table, q, dx, blocks, whole_q), "dx": split_dx, "gradients": gradients}
    sizes = {
        "q": (tiles.q, tile.block_m * block_r),
        "dx": (tiles.dx, tile.block_m * tile.block_k),
        "gradients": (tiles.dB + tiles.dA, tile.block_n * block_r),
    }
    return GroupPlan(
        single=single,
        block_r=block_r,
        split_k=split,
        scratch=_scratch(split, sizes),
        num_tasks=tasks.backward_tickets(tiles, M, N, *split.values()).end,
        workspace=tasks.backward_counters(tiles).end,
    )


def _scratch(split_k: dict[str, int], sizes: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Elements for the splits of so many tiles of such a size."""
    return {
        name: split_k[name] * tiles * size if split_k[name] > 1 else 0
        for name, (tiles, size) in sizes.items()
    }
