"""How a call is laid out on a device: tiles, tasks and variants, looked up in the tile tables.

Needs no Triton and no GPU, so that `explain` can tell what another machine would do.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from fastlora.cost import Problem
from fastlora.formula.masks import dropout_constants
from fastlora.formula.operands import EVERYTHING, Needs
from fastlora_kernels import configs
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.tables import Entry, Tile, load_table


class Plan(NamedTuple):
    """How a call is launched.

    Attributes:
        shape_class: The class of the output's shape in the tile table.
        tile: Block shapes, warps and stages.
        block_r: Block of ranks.
        tasks: Programs of the launch by what they compute: "p" and "y" forward; "q", "dx", "dA" and "dB"
            backward.
        parts: How many of these programs share a tile, by the same names.
        tma: Whether operands come through tensor descriptors, and results go where they are aligned.
        store_columns: Columns of the block that a y or dx tile is stored by.
        split: Whether A and B are wider than x.
        precision: Of fp32 products: "ieee" or "tf32".
        options: Compiler options.
    """

    shape_class: str
    tile: Tile
    block_r: int
    tasks: dict[str, int]
    parts: dict[str, int]
    tma: bool
    store_columns: int
    split: bool
    precision: str
    options: dict[str, int | bool]

    @property
    def num_tasks(self) -> int:
        """Programs of the launch."""
        return sum(self.tasks.values())

    def num_arrivals(self) -> int:
        """Counters that the parts of tiles need."""
        return sum(count // self.parts[name] for name, count in self.tasks.items())

    def scratch_size(self, *names: str) -> int:
        """fp32 elements that the parts of these tiles take together; 0 where the tiles are whole."""
        tile = self.tile
        columns = {"y": tile.out, "dx": tile.out}
        rows = {"dA": tile.inner, "dB": tile.inner}
        return sum(
            self.tasks[name] * rows.get(name, tile.rows) * columns.get(name, self.block_r)
            for name in names
            if self.parts[name] > 1
        )


def plan_for(
    direction: str,
    architecture: str,
    problem: Problem,
    needs: Needs = EVERYTHING,
    tile: Tile | None = None,
    *,
    dropout: float = 0.0,
    aligned: bool = True,
) -> Plan:
    """The plan for an architecture of the tile tables, whatever machine this is.

    Args:
        direction: "forward" or "backward".
        architecture: The table's name.
        problem: Shape and dtypes.
        needs: What a backward pass computes.
        tile: Instead of the table's.
        dropout: Probability of dropping an entry of x_d.
        aligned: Whether TMA can address the operands.
    """
    dropped = dropout_constants(dropout)[0] > 0
    return _cached_plan(direction, architecture, problem, needs, tile, dropped, _precision(), aligned)


def vendor_won(direction: str, architecture: str, problem: Problem, *, aligned: bool = True) -> str | None:
    """The class of shapes for which the vendor's matrix product was measured to be faster; None where not.

    It was measured without dropout, with every gradient needed; and counts for its own dtypes and rank.
    """
    name, entry, _ = _entry_of(direction, architecture, problem, _precision(), aligned)
    dtypes = _name(problem.dtype), _name(problem.adapter_dtype)
    return name if configs.beaten(entry, direction, *dtypes, problem.r) else None


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _entry_of(
    direction: str, architecture: str, problem: Problem, precision: str, aligned: bool
) -> tuple[str, Entry, str]:
    """The class of the output's shape, what the table says of it, and the kind of elements."""
    table = configs.table_of(architecture)
    kind = configs.element_kind(torch.finfo(problem.dtype).bits, precision)
    columns = problem.N if direction == "forward" else problem.K
    tma = aligned and configs.takes_tma(architecture, kind)
    name = configs.shape_class(table, kind, problem.M, columns, direction, tma=tma)
    return name, table.entries[kind][name], kind


# Lengths of sequences vary from batch to batch, hence the size.
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
) -> Plan:
    name, entry, kind = _entry_of(direction, architecture, problem, precision, aligned)
    shape = problem[:4]
    split = torch.finfo(problem.adapter_dtype).bits > torch.finfo(problem.dtype).bits
    table = configs.table_of(architecture)
    tile = tile or getattr(entry, direction)
    block_r = configs.rank_block(problem.r, architecture, kind, split)
    if direction == "forward":
        tiles, steps = _forward_tiles(tile, block_r, shape)
    else:
        tiles, steps = _backward_tiles(tile, block_r, shape, needs)
    parts = {name: configs.num_parts(table, count, steps[name]) for name, count in tiles.items()}
    if direction == "backward":  # the tiles of dB and dA stand in one row, cut alike
        parts["dB"] = parts["dA"] = configs.num_parts(table, tiles["dB"] + tiles["dA"], steps["dA"])
    return Plan(
        shape_class=name,
        tile=tile,
        block_r=block_r,
        tasks={name: count * parts[name] for name, count in tiles.items()},
        parts=parts,
        tma=aligned and configs.takes_tma(architecture, kind),
        store_columns=configs.store_columns(tile, direction, dropped),
        split=split,
        precision=precision,
        options=configs.launch_options(tile, "hip" if architecture.startswith("gfx") else "cuda"),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _forward_tiles(tile: Tile, block_r: int, shape: tuple[int, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """How many tiles there are of each kind, and how many steps the loop of each has."""
    M, K, N, r = shape
    tiles = {"p": num_blocks(M, tile.rows) * num_blocks(r, block_r), "y": configs.num_tiles(tile, M, N)}
    return tiles, dict.fromkeys(tiles, num_blocks(K, tile.inner))


def _backward_tiles(
    tile: Tile, block_r: int, shape: tuple[int, ...], needs: Needs
) -> tuple[dict[str, int], dict[str, int]]:
    M, K, N, r = shape
    ranks = num_blocks(r, block_r)
    tiles = {
        "q": num_blocks(M, tile.rows) * ranks * (needs.dx or needs.dA),
        "dx": configs.num_tiles(tile, M, K) * needs.dx,
        "dB": num_blocks(N, tile.inner) * ranks * needs.dB,
        "dA": num_blocks(K, tile.inner) * ranks * needs.dA,
    }
    along_N, along_M = num_blocks(N, tile.inner), num_blocks(M, tile.rows)
    return tiles, {"q": along_N, "dx": along_N, "dB": along_M, "dA": along_M}


@functools.lru_cache(maxsize=64)
def architecture_of(device: torch.device) -> str:
    """The tile table's name for a device: "interpreter" for the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    return configs.nearest_architecture(
        backend="hip" if torch.version.hip else "cuda",
        capability=(properties.major, properties.minor),
        shared_memory=getattr(properties, "shared_memory_per_block_optin", 0),
    )


def forget_plans() -> None:
    """Read the tile tables anew."""
    load_table.cache_clear()
    architecture_of.cache_clear()
    _cached_plan.cache_clear()
