"""What the kernels look up for rows of a batch with several adapters; `segment_tables.py` says what is in it.

Made on the host, where the runs of a batch are known, once for all layers of it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora.formula.masks import dropout_constants
from fastlora.formula.runs import Run


class Tables(NamedTuple):
    """The tables of a launch, and how many entries they have.

    Attributes:
        tiles: [num_tiles, 5] int32.
        segments: [num_segments, 5] int32; None where each tile is one segment.
        runs: [runs, 2] int32, the bounds of runs by adapter; or [num_operands + 1] int64, where each has one.
        firsts: [num_operands + 1] int32, the first run of each adapter; None where each has one.
        num_tiles: Tiles, empty ones too.
        num_segments: Segments.
        num_operands: Operands to choose from.
    """

    tiles: Tensor
    segments: Tensor | None
    runs: Tensor
    firsts: Tensor | None
    num_tiles: int
    num_segments: int
    num_operands: int


class Adapters(NamedTuple):
    """Adapters of different ranks, as they lie one after the other.

    Attributes:
        ranks: Of each.
        scales: The scaling s of each.
        dropouts: As in `formula.operands.Operands`, of each.
    """

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropouts: tuple[float, ...]


@functools.lru_cache(maxsize=64)
def tables_of(
    runs: tuple[Run, ...], rows: int, block_m: int, num_operands: int, device: torch.device
) -> Tables:
    """The tables of rows that are cut into tiles where they lie.

    Args:
        runs: Every row once, in order; their adapters are 0 ... num_operands - 1, others mean none.
        rows: Rows of x.
        block_m: Rows of a tile.
        num_operands: Adapters.
        device: Where the tables go, in one copy.
    """
    tiles: list[tuple[int, ...]] = []
    segments: list[tuple[int, ...]] = []
    pending = [(_number(run, num_operands), run.begin, run.end) for run in runs if run.begin < run.end]
    by_adapter: list[list[tuple[int, int]]] = [[] for _ in range(num_operands)]
    for adapter, first, end in pending:
        if adapter < num_operands:
            by_adapter[adapter].append((first, end))
    place = 0
    for tile, begin in enumerate(range(0, rows, block_m)):
        end, first_segment = min(begin + block_m, rows), len(segments)
        while place < len(pending) and pending[place][1] < end:
            adapter, first, last = pending[place]
            segments.append((adapter, max(first, begin), min(last, end), tile, first))
            if last > end:
                break
            place += 1
        tiles.append((0, begin, end, first_segment, len(segments)))
    firsts, ordered = [0], []
    for own in by_adapter:
        ordered += own
        firsts.append(len(ordered))
    parts = [[value for row in part for value in row] for part in (tiles, segments, ordered)]
    flat = torch.tensor([*parts[0], *parts[1], *parts[2], *firsts], dtype=torch.int32, device="cpu")
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    cut = flat.split_with_sizes([*map(len, parts), len(firsts)])
    shaped = cut[0].view(-1, 5), cut[1].view(-1, 5), cut[2].view(-1, 2), cut[3]
    return Tables(*shaped, len(tiles), len(segments), num_operands)


def _number(run: Run, num_operands: int) -> int:
    return run.adapter if 0 <= run.adapter < num_operands else num_operands


@functools.lru_cache(maxsize=256)
def adapter_tables(adapters: Adapters, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ranks [adapters + 1, 3] int32, scales [adapters + 1, 2] fp32), the last entry for no adapter."""
    before, ranks, scales = 0, [], []
    for rank, s, dropout in zip(*adapters, strict=True):
        threshold, kept_scale = dropout_constants(dropout)
        ranks.append((before, rank, threshold))
        scales.append((s, kept_scale))
        before += rank
    ranks.append((0, 0, 0))
    scales.append((0.0, 1.0))
    kinds = (ranks, torch.int32), (scales, torch.float32)
    made = [torch.tensor(rows, dtype=dtype, device=device) for rows, dtype in kinds]
    return made[0], made[1]
