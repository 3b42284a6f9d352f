"""A model of how long a pass takes: its programs, dealt in their order to the multiprocessors of a GPU.

`python -m bench.waves` prints what the low-rank part costs, over the product alone in the same tiles. The
model orders plans and proves nothing: rates are a library's for products, and guesses for the rest.
"""

from __future__ import annotations

import heapq
from typing import Final, NamedTuple

import torch

from fastlora.formula.cost import Problem
from fastlora.routes.plan import Plan, plan_for
from fastlora_kernels import tasks
from fastlora_kernels.configs import num_blocks, table_of
from fastlora_kernels.split_counts import split_k

START: Final = 1e-6  # seconds until a program's pipeline is full
SIGNAL: Final = 0.5e-6  # from a program to those that wait for it, or to the last that shares its tile
LATENCY: Final = 0.15e-6  # of each split that is summed: compiled, four of these loads are under way


class Gpu(NamedTuple):
    """What the model knows of a GPU.

    Attributes:
        architecture: Of its tile table.
        multiprocessors: How many it has.
        flops: Of 16-bit products, a second.
        memory: Bytes a second.
        pull: Bytes a second that one multiprocessor loads from L2.
        resident: Programs on a multiprocessor, by shape class; 1 where nothing is said.
    """

    architecture: str
    multiprocessors: int
    flops: float
    memory: float
    pull: float
    resident: dict[str, int]


_SM_8X: Final = {"few": 2, "low": 3}
GPUS: Final = {
    "H100": Gpu("sm_90", 132, 700e12, 3.35e12, 80e9, {"few": 3, "low": 3, "narrow": 2}),
    "A100": Gpu("sm_80", 108, 270e12, 2.0e12, 60e9, _SM_8X),
    "RTX 4090": Gpu("sm_86", 128, 165e12, 1.0e12, 60e9, _SM_8X),
    "RTX 3090": Gpu("sm_86", 82, 71e12, 0.94e12, 40e9, _SM_8X),
}
_SHAPES: Final = ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096))
_ROWS: Final = (16, 64, 128, 256, 512, 1024, 2048, 8192)


class Launch(NamedTuple):
    """What the model times.

    Attributes:
        plan: Tiles and how many programs share them.
        problem: Shape and dtypes.
        tiles: Those of dx, dB and dA; None forward.
        early: How many dx tiles come before those of dB and dA.
    """

    plan: Plan
    problem: Problem
    tiles: tasks.BackwardTiles | None
    early: int


def launch_of(direction: str, gpu: Gpu, M: int, K: int, N: int, r: int) -> Launch:
    """What this package launches, in bf16."""
    problem = Problem(M, K, N, r, torch.bfloat16, torch.bfloat16)
    plan = plan_for(direction, gpu.architecture, problem, measured=False)
    if direction == "forward":
        return Launch(plan, problem, None, 0)
    tile = plan.tile
    blocks = (tile.block_m, tile.block_n, tile.block_k, plan.block_r, tile.block_k_dA)
    tiles = tasks.backward_tiles(M, N, K, r, 1, 1, 1, *blocks)
    tickets = tasks.backward_tickets(tiles, M, N, *(plan.split_k[name] for name in ("q", "dx", "dA")))
    return Launch(plan, problem, tiles, (tickets.gradients - tickets.dx) // plan.split_k["dx"])


def regardless(launch: Launch, gpu: Gpu) -> Launch:
    """The same with p or q shared by as many programs as have work, and dB and dA in the middle of dx."""
    plan, tiles = launch.plan, launch.tiles
    small, (_, steps, _) = ("q" if tiles else "p"), _contraction(launch)
    split = split_k(table_of(gpu.architecture), plan.tasks[small] // plan.split_k[small], steps)
    changed = plan._replace(split_k=plan.split_k | {small: split})
    return launch._replace(plan=changed, early=tiles.dx // 2 if tiles else 0)


def seconds(launch: Launch, gpu: Gpu, *, low_rank: bool = True) -> float:
    """When the last program ends; without the low-rank part, that of the product alone."""
    return _Model(launch, gpu, low_rank).end


def _contraction(launch: Launch) -> tuple[int, int, int]:
    """(elements of a step, steps, columns of an output tile)."""
    tile, problem = launch.plan.tile, launch.problem
    if launch.tiles:
        return tile.block_n, num_blocks(problem.N, tile.block_n), tile.block_k
    return tile.block_k, num_blocks(problem.K, tile.block_k), tile.block_n


class _Model:
    """Deals all programs when it is made; `end` is when the last one ends."""

    def __init__(self, launch: Launch, gpu: Gpu, low_rank: bool) -> None:
        self.launch, self.gpu, self.low_rank = launch, gpu, low_rank
        plan, problem = launch.plan, launch.problem
        self.split = plan.split_k
        self.small, self.large = ("q", "dx") if launch.tiles else ("p", "y")
        self.rows = num_blocks(problem.M, plan.tile.block_m)
        resident = gpu.resident.get(plan.shape_class, 1)
        self.free = [0.0] * (gpu.multiprocessors * resident)
        # Programs on one multiprocessor share its matrix units and its part of the memory's rate.
        self.sharing = max(1.0, min(resident, plan.tasks[self.large] / gpu.multiprocessors))
        self.end = 0.0
        ready = self._deal_projections() if low_rank else [0.0] * self.rows
        order = self._order()
        self._deal_products(order[: launch.early], ready)
        if low_rank and launch.tiles:
            self._deal_gradients(launch.tiles, max(ready))
        self._deal_products(order[launch.early :], ready)

    def _deal_projections(self) -> list[float]:
        """p or q; when each block of rows is handed over."""
        plan, split = self.launch.plan, self.split[self.small]
        step, steps, _ = _contraction(self.launch)
        rows, ranks = plan.tile.block_m, num_blocks(self.launch.problem.r, plan.block_r)
        loads = num_blocks(steps, split) * (rows + plan.block_r) * step * 2 / self.gpu.pull
        tile = (split, loads, rows * plan.block_r)
        return [max(self._deal(*tile) for _ in range(ranks)) + SIGNAL for _ in range(self.rows)]

    def _deal_products(self, order: list[int], ready: list[float]) -> None:
        """Tiles of y or dx, by their blocks of rows; each waits for p or q after its main loop."""
        tile, split, gpu = self.launch.plan.tile, self.split[self.large], self.gpu
        step, steps, columns = _contraction(self.launch)
        mine, r = num_blocks(steps, split) * step, max(16, self.launch.problem.r)
        flops, memory = (rate / gpu.multiprocessors / self.sharing for rate in (gpu.flops, gpu.memory))
        # Blocks of W come from memory once for the rows that are under way together.
        from_memory = columns * mine * 2 / min(self.rows, tile.group) / memory
        loop = max(2 * tile.block_m * columns * mine / flops, from_memory)
        update = 2 * tile.block_m * columns * r / flops + tile.block_m * r * 4 / gpu.pull
        for row in order:
            after = update if self.low_rank else 0.0
            self._deal(split, loop, tile.block_m * columns, awaits=ready[row], after=after)

    def _deal_gradients(self, tiles: tasks.BackwardTiles, all_rows: float) -> None:
        """dB, then dA, whose programs first wait for q of all rows."""
        plan, split = self.launch.plan, self.split["dA"]
        tile, ranks = plan.tile, plan.block_r
        loads = num_blocks(self.rows, split) * tile.block_m * (2 * tile.block_n + 4 * ranks) / self.gpu.pull
        for number in range(tiles.dB + tiles.dA):
            self._deal(split, loads, tile.block_n * ranks, starts=all_rows if number >= tiles.dB else 0.0)

    def _deal(
        self,
        split: int,
        loop: float,
        size: int,
        *,
        starts: float = 0.0,
        awaits: float = 0.0,
        after: float = 0.0,
    ) -> float:
        """One tile of `size` elements, shared by `split` programs; the last sums. When it is stored."""
        end = 0.0
        for number in range(split):
            mine = max(heapq.heappop(self.free) + START, starts) + loop
            end = max(end, mine)
            if number < split - 1:
                heapq.heappush(self.free, mine)
        if split > 1:
            stored = size * 4 / self.gpu.pull
            end += SIGNAL + stored + split * max(stored, LATENCY)
        end = max(end, awaits) + after
        heapq.heappush(self.free, end)
        self.end = max(self.end, end)
        return end

    def _order(self) -> list[int]:
        """The block of rows of each output tile, in `grouped_order`'s order."""
        tile, problem = self.launch.plan.tile, self.launch.problem
        columns = num_blocks(problem.K if self.launch.tiles else problem.N, _contraction(self.launch)[2])
        groups = (
            range(first, min(first + tile.group, self.rows)) for first in range(0, self.rows, tile.group)
        )
        return [row for group in groups for _ in range(columns) for row in group]


def main() -> None:
    """Print, for each GPU, shape and rank, both passes over the product alone: regardless, and as planned."""
    for name, gpu in GPUS.items():
        lines = [f"{name}: M, K, N, r; forward; backward"]
        for M, K, N, r in ((M, K, N, r) for r in (16, 64) for K, N in _SHAPES for M in _ROWS):
            both = (launch_of(direction, gpu, M, K, N, r) for direction in ("forward", "backward"))
            lines.append(f"{M:6} {K:6} {N:6} {r:4}" + "".join(_ratios(launch, gpu) for launch in both))
        print("\n".join(lines))  # noqa: T201


def _ratios(launch: Launch, gpu: Gpu) -> str:
    alone = seconds(launch, gpu, low_rank=False)
    before, planned = (seconds(one, gpu) / alone for one in (regardless(launch, gpu), launch))
    return f"   {before:.2f} -> {planned:.2f}"


if __name__ == "__main__":
    main()
