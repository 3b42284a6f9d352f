"""How a call is laid out on a device: tiles, tasks and variants, looked up in the tile tables.

Needs no Triton and no GPU, so that `explain` can tell what another machine would do.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastlora.backend import Path, get_backend
from fastlora_kernels import configs
from fastlora_kernels.configs import num_blocks
from fastlora_kernels.tables import Tile, load_table

# TMA addresses memory in units of 16 bytes.
_TMA_ALIGNMENT: Final = 16


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
        library: Whether the vendor's matrix product was measured to be faster for this class, in this dtype
            and at this rank, with adapters in x's dtype, without dropout, with every gradient needed.
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
    library: bool
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


class Needs(NamedTuple):
    """What a pass computes besides its formula's plain part.

    Attributes:
        dropout: Whether the low-rank branch has dropout.
        dx: Whether x needs its gradient.
        dA: Whether A needs its gradient.
        dB: Whether B needs its gradient.
    """

    dropout: bool = False
    dx: bool = True
    dA: bool = True
    dB: bool = True


_EVERYTHING: Final = Needs()


class Route(NamedTuple):
    """The code that one pass takes.

    Attributes:
        path: Its name, and why.
        plan: How the kernels are launched; None where torch computes.
    """

    path: Path
    plan: Plan | None


def route_for(
    direction: str,
    path: Path,
    architecture: str,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    shape: tuple[int, ...],
    needs: Needs = _EVERYTHING,
    *,
    aligned: bool = True,
    setting: str | None = None,
) -> Route:
    """Where a pass goes: the one place that decides, for the passes and for `explain`.

    Args:
        direction: "forward" or "backward".
        path: What `backend.choose_path` says of the device and dtype.
        architecture: The tile table's name; unused where `path` is torch.
        dtype: Of x.
        adapter_dtype: Of A.
        shape: (M, K, N, r).
        needs: What the call computes.
        aligned: Whether TMA can address the operands.
        setting: The backend's, as `choose_path` was given it.
    """
    if path.name == "torch":
        return Route(path, None)
    if 0 in shape:
        return Route(Path("torch", "an operand is empty"), None)
    plan = plan_for(direction, architecture, dtype, adapter_dtype, shape, needs, aligned=aligned)
    if plan.library and (setting or get_backend()) != "triton":
        why = f"the vendor's matrix product was measured to be faster for {plan.shape_class!r} shapes"
        return Route(Path("torch", why), None)
    return Route(path, plan)


def is_aligned(matrix: Tensor) -> bool:
    """Whether TMA can address a [rows, columns] matrix: contiguous rows that start on 16 bytes."""
    stride, inner = matrix.stride()
    row_bytes = stride * matrix.element_size()
    return (
        inner == 1
        and row_bytes > 0
        and row_bytes % _TMA_ALIGNMENT == 0
        and matrix.data_ptr() % _TMA_ALIGNMENT == 0
    )


def make_plan(direction: str, x: Tensor, W: Tensor, A: Tensor, needs: Needs, *, aligned: bool = True) -> Plan:
    """The plan of a call.

    Args:
        direction: "forward" or "backward".
        x: [M, K].
        W: [N, K].
        A: [r, K].
        needs: What the call computes.
        aligned: Whether TMA can address the operands.
    """
    shape = (*x.shape, W.shape[0], A.shape[0])
    return plan_for(direction, architecture_of(x.device), x.dtype, A.dtype, shape, needs, aligned=aligned)


def plan_for(
    direction: str,
    architecture: str,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    shape: tuple[int, ...],
    needs: Needs = _EVERYTHING,
    tile: Tile | None = None,
    *,
    aligned: bool = True,
) -> Plan:
    """The plan for an architecture of the tile tables, whatever machine this is.

    Args:
        direction: "forward" or "backward".
        architecture: The table's name.
        dtype: Of x.
        adapter_dtype: Of A.
        shape: (M, K, N, r).
        needs: What the call computes.
        tile: Instead of the table's.
        aligned: Whether TMA can address the operands.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    precision = "ieee" if exact else "tf32"
    return _cached_plan(direction, architecture, dtype, adapter_dtype, shape, needs, tile, precision, aligned)


# Lengths of sequences vary from batch to batch, hence the size.
@functools.lru_cache(maxsize=8192)
def _cached_plan(
    direction: str,
    architecture: str,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    shape: tuple[int, ...],
    needs: Needs,
    tile: Tile | None,
    precision: str,
    aligned: bool,
) -> Plan:
    M, K, N, r = shape
    kind = configs.element_kind(torch.finfo(dtype).bits, precision)
    split = torch.finfo(adapter_dtype).bits > torch.finfo(dtype).bits
    table = configs.table_of(architecture)
    tma = aligned and configs.takes_tma(architecture, kind)
    name = configs.shape_class(table, kind, M, N if direction == "forward" else K, direction, tma=tma)
    entry = table.entries[kind][name]
    tile = tile or getattr(entry, direction)
    block_r = configs.rank_block(r, architecture, kind, split)
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
        tma=tma,
        store_columns=configs.store_columns(tile, direction, needs.dropout),
        split=split,
        precision=precision,
        library=needs == _EVERYTHING
        and configs.beaten(entry, direction, _name(dtype), _name(adapter_dtype), r),
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


def reload_tables() -> None:
    """Read the tile tables anew, after FASTLORA_TABLES or its files have changed."""
    load_table.cache_clear()
    architecture_of.cache_clear()
    _cached_plan.cache_clear()
