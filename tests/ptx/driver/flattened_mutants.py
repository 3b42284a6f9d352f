"""The faults that are planted in the persistent kernels in plain Triton."""

from __future__ import annotations

from typing import Final

from tests.ptx.driver.mutants import Mutant
from tests.ptx.driver.persistent import FLATTENED

_FORWARD: Final = FLATTENED._replace(passes=("forward",))
_BACKWARD: Final = FLATTENED._replace(passes=("backward",), K=136)
FLATTENED_CASES: Final = {
    "flattened": _FORWARD,
    "flattened, one resident": _FORWARD._replace(resident=1, M=300),
    "flattened, fp16": _FORWARD._replace(dtype="fp16", values="beyond fp16"),
    "flattened backward": _BACKWARD,
    "flattened backward, many rows": _BACKWARD._replace(M=700, K=8, N=8),
}

_SMALL: Final = "flattened.make_small"
_FORWARD_KERNEL: Final = "flattened.flattened_forward_kernel"
_BACKWARD_KERNEL: Final = "flattened.flattened_backward_kernel"
_WAIT: Final = "        wait_for_flag(workspace_ptr + FLAGS + m)\n"
_PUBLISH: Final = "            publish(workspace_ptr + FLAGS + m)\n"
_MAKE: Final = "            not_split = Split("
_DRAW: Final = "ticket = take_ticket(workspace_ptr)\n"


def _mutant(
    name: str, *changes: tuple[str, str, str], case: str = "flattened", redundant: str = ""
) -> Mutant:
    return Mutant(f"flattened: {name}", case, changes, redundant)


FLATTENED_MUTANTS: Final = (
    _mutant("p is not waited for", (_FORWARD_KERNEL, _WAIT, "")),
    _mutant("one flag is waited for", (_FORWARD_KERNEL, _WAIT, _WAIT.replace(" + m", ""))),
    _mutant("the wait is relaxed", ("flattened.wait_for_flag", "ld.acquire", "ld.relaxed")),
    _mutant("the release is relaxed", ("handover.publish", '"release"', '"relaxed"')),
    _mutant("p is never published", (_SMALL, _PUBLISH, "")),
    _mutant("p is published before it is stored", (_SMALL, _PUBLISH, ""), (_SMALL, _MAKE, _PUBLISH + _MAKE)),
    _mutant(
        "a ticket of p too few", (_SMALL, "while ticket < num_tickets", "while ticket < num_tickets - 1")
    ),
    _mutant("the first tile is left out", (_SMALL, "ticket - num_tickets", "ticket - num_tickets + 1")),
    _mutant(
        "a ticket has one block of rows less",
        (
            _SMALL,
            "tl.minimum(first + rows_a_ticket, num_rows)",
            "tl.minimum(first + rows_a_ticket, num_rows - 1)",
        ),
    ),
    _mutant(
        "p is made by programs in their order",
        (_SMALL, f"    {_DRAW}    while", "    ticket = tl.program_id(0)\n    while"),
        (_SMALL, f"        {_DRAW}", "        ticket += tl.num_programs(0)\n"),
        case="flattened, one resident",
    ),
    _mutant(
        "a product more runs on",
        ("ptx", r"wgmma\.wait_group\.sync\.aligned 1", "wgmma.wait_group.sync.aligned 2"),
    ),
    _mutant("the store before is not waited for", ("ptx", r"cp\.async\.bulk\.wait_group.*", "")),
    _mutant("no proxy fences", ("ptx", r"fence\.proxy\.async.*", "")),
    _mutant("loads are not waited for", ("ptx", r"@!complete bra\.uni waitLoop;", "")),
    _mutant(
        "what is summed is not divided by the power of two",
        (_FORWARD_KERNEL, "            acc *= inverse\n", "            acc *= 1.0\n"),
        case="flattened, fp16",
    ),
    _mutant("q is not waited for", (_BACKWARD_KERNEL, _WAIT, ""), case="flattened backward"),
    _mutant(
        "dA does not wait for all rows",
        (_BACKWARD_KERNEL, "            wait_for(workspace_ptr + ALL_ROWS, num_rows)\n", ""),
        case="flattened backward, many rows",
    ),
    _mutant(
        "dA waits for one block of rows less",
        (_BACKWARD_KERNEL, "ALL_ROWS, num_rows)", "ALL_ROWS, num_rows - 1)"),
        case="flattened backward, many rows",
    ),
    _mutant(
        "dB and dA have the tickets of q",
        (_BACKWARD_KERNEL, "workspace_ptr + GRADIENTS", "workspace_ptr"),
        case="flattened backward",
    ),
    _mutant(
        "dA has dB's columns", (_BACKWARD_KERNEL, "(ticket - num_dB)", "ticket"), case="flattened backward"
    ),
)
