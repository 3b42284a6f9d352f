"""The launch plan of a call whose rows choose their operands, from the same tile tables as a plain call's."""

from __future__ import annotations

import functools

import torch

from fastlora.formula.cost import Problem
from fastlora.formula.operands import Needs, outranges_fp16
from fastlora.routes.architecture import fp32_precision
from fastlora.routes.plan import Plan, entry_of
from fastlora_kernels import configs, segment_tasks, tasks
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.split_counts import split_k
from fastlora_kernels.tables import Table, Tile


def tile_for(
    direction: str, architecture: str, problem: Problem, runs: int, *, aligned: bool
) -> tuple[str, Tile, bool]:
    """(shape class, tile, whether operands are loaded through tensor descriptors).

    Args:
        direction: "forward" or "backward".
        architecture: The tile table's name.
        problem: Shape and dtypes; M is all rows.
        runs: Runs whose rows no tile has in common; few rows in each take low tiles.
        aligned: Whether TMA can address the operands.
    """
    return _cached_tile(direction, architecture, problem, runs, fp32_precision(), aligned)


@functools.lru_cache(maxsize=1024)
def _cached_tile(
    direction: str, architecture: str, problem: Problem, runs: int, precision: str, aligned: bool
) -> tuple[str, Tile, bool]:
    rows = num_blocks(problem.M, max(runs, 1))
    M = rows if rows <= configs.LOW_ROWS else problem.M
    # Without TMA nothing takes wide tiles: these kernels spilled 24 to 192 bytes with them (sm_90).
    name, _, kind = entry_of(direction, architecture, problem._replace(M=M), precision, False)
    wide_adapters = problem.adapter_dtype.itemsize > problem.dtype.itemsize
    name = configs.segment_class(name, architecture, direction, wide_adapters)
    entry = configs.table_of(architecture).entries[kind][name]
    tma = aligned and configs.takes_tma(architecture, kind)
    return name, getattr(entry, direction), tma


def most_tiles(rows: int, runs: int, block_m: int) -> int:
    """The most tiles that so many rows in so many runs can have, if no tile has rows of two."""
    return rows // block_m + min(runs, rows)


def run_plan(
    direction: str,
    architecture: str,
    problem: Problem,
    num_tiles: int,
    num_segments: int,
    num_operands: int,
    needs: Needs,
    found: tuple[str, Tile, bool],
    split_k: tuple[int, int] | None = None,
    multiprocessors: int | None = None,
) -> Plan:
    """The plan of a launch.

    Args:
        direction: "forward" or "backward".
        architecture: The tile table's name, which need not be this machine's.
        problem: Shape and dtypes; M is all rows, r the largest rank.
        num_tiles: Tiles of rows.
        num_segments: Segments of them.
        num_operands: Operands to choose from.
        needs: Which gradients a backward pass computes.
        found: As `tile_for` returns it.
        split_k: How many programs share a tile of (p, y) or (q, dx); None means as many as have work.
        multiprocessors: As in `plan_for`.
    """
    counts = (num_tiles, num_segments, num_operands)
    rest = needs, found, split_k, fp32_precision(), multiprocessors
    return _cached_plan(direction, architecture, problem, counts, *rest)


@functools.lru_cache(maxsize=1024)
def _cached_plan(
    direction: str,
    architecture: str,
    problem: Problem,
    counts: tuple[int, int, int],
    needs: Needs,
    found: tuple[str, Tile, bool],
    split_k: tuple[int, int] | None,
    precision: str,
    multiprocessors: int | None,
) -> Plan:
    name, tile, tma = found
    table = configs.table_of(architecture, multiprocessors)
    _, K, N, r, x, adapter, _ = problem
    kind = configs.element_kind(torch.finfo(x).bits, precision)
    tf32_terms = outranges_fp16(adapter, x)
    wide_adapters = adapter.itemsize > x.itemsize or tf32_terms
    block_r = configs.segment_rank_block(r, architecture, kind, wide_adapters, tf32_terms)
    if direction == "forward":
        forward = segment_tasks.segment_forward_tiles(*counts[:2], N, r, tile.block_n, block_r)
        tiles = forward._asdict()
        split = _split(("p", "y"), split_k, table, tiles, num_blocks(K, tile.block_k))
        num_tasks = tasks.forward_tickets(forward, split["p"], split["y"]).end
        workspace = tasks.forward_counters(forward).end
    else:
        blocks = (tile.block_n, tile.block_k, block_r, tile.block_k_dA)
        backward = segment_tasks.segment_backward_tiles(*counts, N, K, r, *needs, *blocks)
        tiles = backward._asdict()
        split = _split(("q", "dx"), split_k, table, tiles, num_blocks(N, tile.block_n))
        split |= {"dB": 1, "dA": 1}
        rows = counts[0] * tile.block_m
        num_tasks = tasks.backward_tickets(backward, rows, N, split["q"], split["dx"], 1).end
        workspace = tasks.backward_counters(backward).end
    return Plan(
        direction=direction,
        shape_class=name,
        tile=tile,
        block_r=block_r,
        tasks={one: tiles[one] * count for one, count in split.items()},
        split_k=split,
        num_tasks=num_tasks,
        workspace=workspace,
        tma=tma,
        store_columns=tile.columns(direction),
        precision=precision,
        options=configs.launch_options(tile, "hip" if architecture.startswith("gfx") else "cuda"),
    )


def _split(
    names: tuple[str, str],
    given: tuple[int, int] | None,
    table: Table,
    tiles: dict[str, int],
    steps: int,
) -> dict[str, int]:
    """How many programs share a tile of each result: as given, or as its `steps` along the sum allow."""
    counts = given or [split_k(table, tiles[name], steps) for name in names]
    return dict(zip(names, counts, strict=True))
