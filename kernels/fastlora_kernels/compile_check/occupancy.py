"""Occupancy: how many programs of a kernel one multiprocessor runs at a time."""

from typing import Final, NamedTuple


class Limits(NamedTuple):
    """The limits of one multiprocessor.

    Attributes:
        registers: 32-bit registers of all threads.
        shared: Bytes of shared memory.
        reserved: Bytes of it that the system takes for every program.
        warps: Resident warps.
        programs: Resident programs.
        lanes: Threads of a warp.
        grain: A thread's registers are allocated in multiples of this.
    """

    registers: int
    shared: int
    reserved: int
    warps: int
    programs: int
    lanes: int
    grain: int


# CUDA programming guide, "compute capabilities"; the CDNA3 ISA guide: four SIMDs of 512 vector registers a
# lane and up to 8 waves each share 64 KiB of LDS.
LIMITS: Final = {
    "80": Limits(65_536, 164 * 1024, 1024, 64, 32, 32, 8),
    "86": Limits(65_536, 100 * 1024, 1024, 48, 16, 32, 8),
    "89": Limits(65_536, 100 * 1024, 1024, 48, 24, 32, 8),
    "90": Limits(65_536, 228 * 1024, 1024, 64, 32, 32, 8),
    "100": Limits(65_536, 228 * 1024, 1024, 64, 32, 32, 8),
    "gfx942": Limits(4 * 512 * 64, 64 * 1024, 0, 32, 32, 64, 8),
}


def resident_programs(target: str, num_warps: int, registers: int, shared: int) -> tuple[int, str]:
    """(programs resident on one multiprocessor, the resource that leaves no room for one more).

    Args:
        target: A key of LIMITS.
        num_warps: Warps of a program.
        registers: Registers of a thread.
        shared: Bytes of shared memory of a program.
    """
    limits = LIMITS[target]
    per_thread = -(-registers // limits.grain) * limits.grain
    counts = {
        "registers": limits.registers // (per_thread * limits.lanes * num_warps),
        "shared memory": limits.shared // max(shared + limits.reserved, 1),
        "warps": limits.warps // num_warps,
        "programs": limits.programs,
    }
    scarce = min(counts, key=counts.__getitem__)
    return counts[scarce], scarce
