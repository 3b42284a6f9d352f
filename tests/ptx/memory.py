"""Memory that knows which of its bytes may be touched, which were written, by whom, and who read them since.

It counts in granules of two bytes, the smallest element of the kernels' data. A store of one byte counts as
one of its granule.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.ptx.clocks import Clocks
from tests.ptx.faults import Fault


class Access(NamedTuple):
    """Who touches memory, lane by lane.

    Attributes:
        rows: The warp whose knowledge counts: its own, or of asynchronous work that of the warp that issued
            it.
        ids: The id to which the access belongs.
        times: Its time of that id.
        is_async: Whether it goes through the async proxy.
        where: The place in the program, for a message.
    """

    rows: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    is_async: bool
    where: object


class Memory:
    """Bytes from address 0 on.

    Args:
        size: Bytes.
        name: For messages.
        readers: How many readers of a granule are told apart; 0 means that only the last one is kept.
    """

    def __init__(self, size: int, name: str, readers: int = 0) -> None:
        size = (size + 15) // 16 * 16
        self.name = name
        self.data = np.zeros(size, np.uint8)
        self.halves = self.data.view(np.uint16)
        granules = size // 2
        self.valid = np.zeros(granules, bool)
        self.written = np.zeros(granules, bool)
        self.writer = np.zeros(granules, np.int32)
        self.write_time = np.zeros(granules, np.int32)
        self.readers = readers
        if readers:
            self.read_times = np.zeros((granules, readers), np.int32)
        else:
            self.reader = np.zeros(granules, np.int32)
            self.read_time = np.zeros(granules, np.int32)

    def forget(self, start: int, stop: int) -> None:
        """These bytes are new: never written or read."""
        part = slice(start // 2, stop // 2)
        self.written[part] = False
        self.writer[part] = self.write_time[part] = 0
        if self.readers:
            self.read_times[part] = 0

    def granules(self, addresses: np.ndarray, size: int, what: str, access: Access) -> np.ndarray:
        """[lanes, granules] that `size` bytes at each address take."""
        if size > 1 and (addresses & (size - 1)).any():
            raise Fault(f"{what} of {size} bytes of {self.name} memory is misaligned: {access.where}")
        first = addresses >> 1
        index = first[:, None] + np.arange(max(size // 2, 1))
        if index.size and (index.min() < 0 or index.max() >= self.valid.size or not self.valid[index].all()):
            raise Fault(f"{what} out of bounds of {self.name} memory: {access.where}")
        return index

    def load(self, addresses: np.ndarray, size: int, access: Access, clocks: Clocks) -> np.ndarray:
        """[lanes, size] bytes."""
        index = self.granules(addresses, size, "load", access)
        self.check_read(index, access, clocks)
        if size == 1:
            return self.data[addresses][:, None]
        return self.halves[index].view(np.uint8)

    def check_read(self, index: np.ndarray, access: Access, clocks: Clocks) -> None:
        """Reads must be of what was written, and after it."""
        if not self.written[index].all():
            raise Fault(f"load of {self.name} memory that nobody wrote: {access.where}")
        self._check_after_writes(index, access, clocks, "load of {} memory races with a store")
        if self.readers:
            first = clocks.cta_ids(access.rows)
            self.read_times[index, (access.ids - first)[:, None]] = access.times[:, None]
        else:
            self.reader[index], self.read_time[index] = access.ids[:, None], access.times[:, None]

    def store(self, addresses: np.ndarray, values: np.ndarray, access: Access, clocks: Clocks) -> None:
        """Write [lanes, size] bytes."""
        size = values.shape[1]
        index = self.granules(addresses, size, "store", access)
        self.check_write(index, values, access, clocks)
        self.written[index] = True
        if size == 1:
            self.data[addresses] = values[:, 0]
        else:
            self.halves[index] = np.ascontiguousarray(values).view(np.uint16)

    def check_write(
        self, index: np.ndarray, values: np.ndarray | None, access: Access, clocks: Clocks
    ) -> None:
        """Writes must come after earlier writes and reads, and no other warp may write the same at once."""
        self._check_after_reads(index, access, clocks)
        same = self._repeats(index, values)
        self._check_after_writes(index, access, clocks, "two stores to {} memory race", unless=same)
        ids = np.broadcast_to(access.ids[:, None], index.shape)
        self.writer[index] = ids
        self.write_time[index] = access.times[:, None]
        collided = self.writer[index] != ids
        if collided.any():
            self._check_collisions(index, collided, values, access)

    def _check_after_writes(
        self, index: np.ndarray, access: Access, clocks: Clocks, what: str, unless: np.ndarray | None = None
    ) -> None:
        writer = self.writer[index]
        rows = access.rows[:, None]
        late = self.write_time[index] > clocks.known[rows, writer]
        if access.is_async:
            late |= (self.write_time[index] > clocks.fenced[self.name][rows, writer]) & clocks.is_generic(
                writer
            )
        if unless is not None:
            late &= ~unless
        if late.any():
            raise Fault(f"race: {what.format(self.name)}: {access.where}")

    def _check_after_reads(self, index: np.ndarray, access: Access, clocks: Clocks) -> None:
        if self.readers:
            first = clocks.cta_ids(access.rows)
            known = clocks.known[access.rows[:, None], first[:, None] + np.arange(self.readers)]
            late = (self.read_times[index] > known[:, None, :]).any()
        else:
            late = (self.read_time[index] > clocks.known[access.rows[:, None], self.reader[index]]).any()
        if late:
            raise Fault(f"race: store to {self.name} memory races with a load: {access.where}")

    def _repeats(self, index: np.ndarray, values: np.ndarray | None) -> np.ndarray | None:
        """Where shared memory holds these bytes: warps with the same part of a layout both store it."""
        if not self.readers or values is None or values.shape[1] == 1:
            return None
        return self.written[index] & (self.halves[index] == np.ascontiguousarray(values).view(np.uint16))

    def _check_collisions(
        self, index: np.ndarray, collided: np.ndarray, values: np.ndarray | None, access: Access
    ) -> None:
        """Two warps wrote the same place in one step; in shared memory that is harmless if they agree."""
        if self.readers and values is not None and values.shape[1] > 1:
            bits = np.ascontiguousarray(values).view(np.uint16)
            last = self.halves.copy()
            last[index] = bits
            if (last[index] == bits).all():
                return
        raise Fault(f"race: two stores to {self.name} memory in one step: {access.where}")
