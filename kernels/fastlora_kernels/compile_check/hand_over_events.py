"""Which instructions of a kernel's PTX take part in a hand-over: stores, releases, acquiring loads, reads."""

from typing import Final, NamedTuple

from fastlora_kernels import tasks
from fastlora_kernels.compile_check.ptx import Instruction, Program, UnknownValueError
from fastlora_kernels.segment_tasks import segment_backward_tiles
from fastlora_kernels.tables import Tile

FLAGS: Final = "the flags"
ALL_ROWS: Final = "the count of all rows"


class Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        direction: "forward" or "backward".
        arguments: What its parameters in PTX are, in order, such as "p_ptr" or "scratch_ptrs.0".
        tile: Its block shapes.
        block_r: Ranks in a block.
        members: How many projections publish tiles of q for each block of rows and ranks.
        rows: "experts" or "adapters", which the rows of a kernel for segments choose; else "".
    """

    direction: str
    arguments: tuple[str, ...]
    tile: Tile
    block_r: int
    members: int = 1
    rows: str = ""


class Comparison(NamedTuple):
    """What is done with a value that an atomic or an acquiring load has read.

    Attributes:
        branch: The number of the branch that depends on it.
        relation: How the value is compared, such as "ge".
        other: The operand that it is compared with.
    """

    branch: int
    relation: str
    other: str


# Which argument says how many programs share the tiles of a scratch.
_SPLITS: Final = {
    "forward": {"split_p": "scratch_ptrs.0", "split_y": "scratch_ptrs.1"},
    "backward": {
        "split_q": "scratch_ptrs.0",
        "split_dx": "scratch_ptrs.1",
        "split_gradients": "scratch_ptrs.2",
    },
}
_WORKSPACE: Final = 1 << 20
# Different counts of everything, so that none passes for another.
SIZES: Final = tuple(
    {"M": M, "N": 4096, "K": 2048, "r": r, "workspace_ptr": _WORKSPACE}
    | {"split_p": 3, "split_y": 5, "split_q": 3, "split_dx": 5, "split_gradients": 7}
    | {"num_tiles": M // 7, "num_segments": M // 3, "num_operands": r // 5}
    for M, r in ((1500, 300), (2500, 200))
)
_FLIPPED: Final = {"ge": "le", "le": "ge", "gt": "lt", "lt": "gt", "eq": "eq", "ne": "ne"}


class Events:
    """The events of one kernel, by the numbers of their instructions.

    Attributes:
        program: Its PTX.
        backward: Whether it is the backward kernel.
        handed: "p_ptr" or "q_ptr".
        splits: For each count of splits the scratch of their tiles.
        stores: What each store writes, of what is handed over, the scratches and dA.
        loads: The same for each load, whether to registers or to shared memory.
        barriers: Where all threads meet.
        releases: Where a tile is published.
        arrivals: Where a split is counted.
        waits: Loads that acquire.
    """

    def __init__(self, program: Program, kernel: Kernel) -> None:
        self.program, self.kernel = program, kernel
        self.backward = kernel.direction == "backward"
        self.handed = "q_ptr" if self.backward else "p_ptr"
        self.splits = _SPLITS[kernel.direction]
        self._names = dict(zip(program.parameters, kernel.arguments, strict=False))
        self._given = [
            {parameter: sizes[name] for parameter, name in self._names.items() if name in sizes}
            for sizes in SIZES
        ]
        places = list(enumerate(program.instructions))
        self.barriers = {
            n for n, one in places if one.opcode.startswith(("bar.sync", "barrier.sync", "barrier.cta.sync"))
        }
        self.releases = [n for n, one in places if one.has("release", "gpu", "global")]
        self.arrivals = [n for n, one in places if one.has("atom", "acq_rel", "gpu", "global")]
        self.waits = [n for n, one in places if one.has("acquire", "gpu", "global")]
        self.stores = self._accesses(("st.global",), 0)
        self.loads = self._accesses(("ld.global", "cp.async.ca", "cp.async.cg"), 1)

    def _accesses(self, opcodes: tuple[str, ...], operand: int) -> dict[int, set[str]]:
        found = {}
        for number, one in enumerate(self.program.instructions):
            if one.opcode.startswith(opcodes):
                sources = self.program.sources(one.operands[operand])
                found[number] = {self._names.get(source, "") for source in sources}
        watched = {self.handed, "dA_ptr", *self.splits.values()}
        return {number: names & watched for number, names in found.items() if names & watched}

    def compared(self, number: int) -> Comparison | None:
        """How the value read by an atomic or acquiring load decides the next branch; None if it does not."""
        instructions = self.program.instructions
        # One thread reads; the others get it from it through shared memory.
        holding = {instructions[number].operands[0]}
        test: Instruction | None = None
        for place in range(number + 1, len(instructions)):
            one = instructions[place]
            if one.opcode.startswith("ld.shared"):
                holding.add(one.operands[0])
            elif one.has("setp") and holding & set(one.operands[1:]):
                test = one
            elif one.has("bra"):
                if test is None or one.guard.lstrip("!") != test.operands[0]:
                    return None
                relation, (left, right) = test.opcode.split(".")[1], test.operands[1:3]
                is_left = left in holding
                return (
                    Comparison(place, relation, right)
                    if is_left
                    else Comparison(place, _FLIPPED[relation], left)
                )
        return None

    def way(self, branch: int, condition: bool) -> int:
        """Where a branch goes on if the condition that it is guarded by has this value."""
        fall_through, target = self.program.following[branch]
        return (
            target if condition != self.program.instructions[branch].guard.startswith("!") else fall_through
        )

    def values(self, operand: str) -> list[int]:
        """What it holds for each of SIZES; empty if that is not known."""
        try:
            return [self.program.value(operand, given) for given in self._given]
        except UnknownValueError:
            return []

    def counter(self, number: int) -> str:
        """Which counter an atomic or an acquiring load addresses: only that of all rows has a fixed place."""
        one = self.program.instructions[number]
        # "red" has no result before its address.
        address = one.operands[0 if one.has("red") else 1]
        try:
            places = {self.program.address(address, given) - _WORKSPACE for given in self._given}
        except UnknownValueError:
            return FLAGS
        all_rows = tasks.BackwardCounters._fields.index("all_rows")
        return ALL_ROWS if self.backward and places == {4 * all_rows} else FLAGS

    def published(self, counter: str) -> list[int]:
        """How many tiles are published by a counter, for each of SIZES.

        Empty for the flags of tiles with several adapters: how many there are lies in memory.
        """
        tile, block_r, rows = self.kernel.tile, self.kernel.block_r, self.kernel.rows
        if rows == "adapters" and counter == FLAGS:
            return []
        counts = []
        for sizes in SIZES:
            M, N, K, r = (sizes[name] for name in "MNKr")
            blocks = (tile.block_m, tile.block_n, tile.block_k, block_r, tile.block_k_dA)
            tiles = tasks.backward_tiles(M, N, K, r, 1, 1, 1, *blocks)
            if rows:
                numbers = (sizes[f"num_{name}"] for name in ("tiles", "segments", "operands"))
                tiles = segment_backward_tiles(*numbers, N, K, r, 1, 1, 1, *blocks[1:])
            counts.append(self.kernel.members * (tiles.q if counter == ALL_ROWS else tiles.ranks))
        return counts
