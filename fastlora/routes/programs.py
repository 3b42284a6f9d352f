"""How many programs a launch has of each kind of tile."""

from __future__ import annotations

from typing import NamedTuple

from fastlora.formula.cost import Problem
from fastlora.formula.operands import Needs
from fastlora_kernels import tasks
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.split_counts import Blocks, Tiles, split_beside, split_k, split_of_q
from fastlora_kernels.tables import Table, Tile


class Programs(NamedTuple):
    """The programs of a launch: splits of a tile and programs by their kind, all of them, counters."""

    split_k: dict[str, int]
    programs: dict[str, int]
    num_tasks: int
    workspace: int


def forward_programs(table: Table, tile: Tile, block_r: int, problem: Problem, needs: Needs) -> Programs:
    """Those of a forward pass, whatever the backward pass needs."""
    M, K, N, r = problem[:4]
    tiles = tasks.forward_tiles(M, N, r, tile.block_m, tile.block_n, block_r)
    steps = num_blocks(K, tile.block_k)
    blocks = Blocks(tile.block_m, tile.block_k, problem.dtype.itemsize)
    p, y = Tiles(tiles.p, steps, block_r), Tiles(tiles.y, steps, tile.block_n)
    split = {"p": split_beside(table, p, y, blocks), "y": split_k(table, tiles.y, steps)}
    return Programs(
        split,
        {name: getattr(tiles, name) * count for name, count in split.items()},
        tasks.forward_tickets(tiles, split["p"], split["y"]).end,
        tasks.forward_counters(tiles).end,
    )


def backward_programs(table: Table, tile: Tile, block_r: int, problem: Problem, needs: Needs) -> Programs:
    """Those of a backward pass."""
    M, K, N, r = problem[:4]
    shape = (tile.block_m, tile.block_n, tile.block_k, block_r, tile.block_k_dA)
    tiles = tasks.backward_tiles(M, N, K, r, *needs, *shape)
    steps = num_blocks(N, tile.block_n)
    blocks = Blocks(tile.block_m, tile.block_n, problem.dtype.itemsize)
    # The tiles of dB and dA form one sequence, with the same number of splits.
    gradients = split_k(table, tiles.dB + tiles.dA, num_blocks(M, tile.block_m))
    split_dx = split_k(table, tiles.dx, steps)
    q, dx = Tiles(tiles.q, steps, block_r), Tiles(tiles.dx, steps, tile.block_k)
    whole_q = tasks.backward_tickets(tiles, M, N, 1, split_dx, gradients)
    split_q = split_of_q(table, q, dx, blocks, whole_q)
    split = {"q": split_q, "dx": split_dx, "dB": gradients, "dA": gradients}
    programs = {name: getattr(tiles, name) * count for name, count in split.items()}
    end = tasks.backward_tickets(tiles, M, N, split_q, split_dx, gradients).end
    return Programs(split, programs, end, tasks.backward_counters(tiles).end)
