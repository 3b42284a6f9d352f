"""How a call is laid out on a device: tiles, tasks and variants, looked up in the tile table.

Needs no Triton and no GPU, so that `explain` can tell what another machine would do.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fastlora_kernels import configs


class Plan(NamedTuple):
    """How one class of calls is launched.

    Attributes:
        tile: Block shapes, warps and stages.
        block_r: Block of ranks.
        tma: Whether aligned operands come through tensor descriptors.
        split: Whether A and B are wider than x.
        precision: Of fp32 products: "ieee" or "tf32".
        options: Compiler options.
    """

    tile: configs.Tile
    block_r: int
    tma: bool
    split: bool
    precision: str
    options: dict[str, int | bool]

    def forward_tasks(self, M: int, N: int, r: int) -> dict[str, int]:
        """Programs of the forward launch, by what they compute."""
        rows = _blocks(M, self.tile.rows)
        return {"p": rows * _blocks(r, self.block_r), "y": rows * _blocks(N, self.tile.out)}

    def backward_tasks(
        self, M: int, N: int, K: int, r: int, *, need_dx: bool, need_dA: bool, need_dB: bool
    ) -> dict[str, int]:
        """Programs of the backward launch, by what they compute."""
        rows, ranks = _blocks(M, self.tile.rows), _blocks(r, self.block_r)
        return {
            "q": rows * ranks * (need_dx or need_dA),
            "dx": rows * _blocks(K, self.tile.out) * need_dx,
            "dA": ranks * _blocks(K, self.tile.inner) * need_dA,
            "dB": ranks * _blocks(N, self.tile.inner) * need_dB,
        }


def make_plan(direction: str, x: Tensor, A: Tensor) -> Plan:
    """The plan of a call; calls of one device, dtypes, row class and rank share it.

    Args:
        direction: "forward" or "backward".
        x: [M, K].
        A: [r, K].
    """
    architecture = architecture_of(x.device)
    return plan_for(direction, architecture, x.dtype, A.dtype, x.shape[0], A.shape[0])


def plan_for(
    direction: str,
    architecture: str,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    M: int,
    r: int,
) -> Plan:
    """The plan for an architecture of the tile table, whatever machine this is.

    Args:
        direction: "forward" or "backward".
        architecture: The tile table's name.
        dtype: Of x.
        adapter_dtype: Of A.
        M: Rows of x.
        r: The rank.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    precision = "ieee" if exact else "tf32"
    return _cached_plan(direction, architecture, dtype, adapter_dtype, configs.row_class(M), r, precision)


@functools.lru_cache(maxsize=1024)
def _cached_plan(
    direction: str,
    architecture: str,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    rows: str,
    r: int,
    precision: str,
) -> Plan:
    kind = configs.element_kind(torch.finfo(dtype).bits, precision)
    split = torch.finfo(adapter_dtype).bits > torch.finfo(dtype).bits
    tile: configs.Tile = getattr(configs.entry(architecture, kind, rows), direction)
    return Plan(
        tile=tile,
        block_r=configs.rank_block(r, architecture, kind, split),
        tma=configs.takes_tma(architecture, kind),
        split=split,
        precision=precision,
        options=configs.launch_options(tile, "hip" if architecture.startswith("gfx") else "cuda"),
    )


@functools.lru_cache(maxsize=64)
def architecture_of(device: torch.device) -> str:
    """The tile table's name for a device: "interpreter" for the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    return configs.nearest_architecture(
        backend="hip" if torch.version.hip else "cuda",
        capability=(properties.major, properties.minor),
        shared_memory=getattr(properties, "shared_memory_per_block_optin", configs.SHARED_MEMORY["sm_86"]),
    )


def _blocks(size: int, block: int) -> int:
    return -(-size // block)
