"""What happens before what, by vector clocks (8, "Memory Consistency Model").

Everything that acts has an id: each warp, and for each warp its wgmma reads, its bulk stores and its
cp.async copies; each mbarrier stands for the loads that complete on it. A warp's row says up to which of
every other one's events it knows that they happened. An access without such knowledge of the one before it
is a race, in whatever order the two happened to run. So one run finds races of every schedule that takes
the same branches. Lanes of one warp count as one: a race between two lanes of a warp is not seen.
"""

from __future__ import annotations

import numpy as np

MBARRIERS = 24  # of one CTA, at most
SPACES = ("shared", "global")
BULK_STORES = 2  # the kind of a warp's ids that stands for its bulk stores


class Clocks:
    """A launch's vector clocks: a row for each place of a warp, a column for each id; 0 is the host."""

    def __init__(self, places: int, num_warps: int, grid: int) -> None:
        self.num_warps = num_warps
        self.per_cta = 4 * num_warps + MBARRIERS
        size = 1 + grid * self.per_cta
        self.known = np.zeros((places, size), np.int32)
        # The part of it that the async proxy sees too, by kind of memory: all up to the last proxy fence
        # there (8.10, "Proxies").
        self.fenced = {space: np.zeros((places, size), np.int32) for space in SPACES}
        self.id = np.zeros(places, np.int64)
        self.time = np.zeros(size, np.int32)  # of the ids that are no warps: how many operations were issued
        # By address, what its release sequence publishes: all, and what of global memory the async proxy
        # sees too.
        self.released: dict[int, np.ndarray] = {}
        self.rows = np.arange(places)

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """All that warps know, which a barrier hands on."""
        return self.known, *self.fenced.values()

    def start(self, rows: np.ndarray, cta: int) -> None:
        """New warps at these places: they know the host's writes only."""
        for part in self.parts:
            part[rows] = 0
        self.id[rows] = 1 + cta * self.per_cta + np.arange(self.num_warps)
        self.known[rows, self.id[rows]] = 1

    def now(self, rows: np.ndarray) -> np.ndarray:
        """The own time of these warps."""
        return self.known[rows, self.id[rows]]

    def tick(self, rows: np.ndarray | int) -> None:
        """What these warps do from here on is not in what they published."""
        self.known[rows, self.id[rows]] += 1

    def meet(self, rows: np.ndarray) -> None:
        """A barrier: everyone knows what anyone knew (9.7.13.1)."""
        for part in self.parts:
            part[rows] = part[rows].max(axis=0)
        self.tick(rows)

    def release(self, row: int, address: int, *, starts: bool) -> None:
        """Publish at an address; read-modify-writes go on with the release sequence, a store starts one."""
        before = None if starts else self.released.get(address)
        mine = np.stack([self.known[row], self.fenced["global"][row]])
        self.released[address] = mine if before is None else np.maximum(before, mine)
        self.tick(row)

    def acquire(self, row: int, address: int) -> None:
        """Learn what was published at an address whose published value this warp has read."""
        published = self.released.get(address)
        if published is not None:
            for part, learned in zip((self.known, self.fenced["global"]), published, strict=True):
                np.maximum(part[row], learned, out=part[row])

    def fence_proxy(self, rows: np.ndarray, spaces: tuple[str, ...]) -> None:
        """fence.proxy.async: the async proxy sees what these warps know of such memory (9.7.13.4)."""
        for space in spaces:
            self.fenced[space][rows] = self.known[rows]

    def issue(self, ids: np.ndarray) -> np.ndarray:
        """A new time of each asynchronous id, of an operation that begins."""
        self.time[ids] += 1
        return self.time[ids]

    def is_generic(self, ids: np.ndarray) -> np.ndarray:
        """Whether these ids write through the generic proxy: warps and cp.async copies do."""
        kind = (ids - 1) % self.per_cta // self.num_warps
        return (kind == 0) | (kind == 3)

    def cta_ids(self, rows: np.ndarray) -> np.ndarray:
        """The first id of each row's CTA."""
        return self.id[rows] - (self.id[rows] - 1) % self.per_cta
