"""Whether the persistent kernels for sm_90 can take a call, and whether they do by default.

They are the default where an H100 measured them to be the fastest, and taken elsewhere by a choice that was
measured on this machine's GPU. Nothing here imports Triton.
"""

from __future__ import annotations

from typing import Final

import torch

from fastlora.arguments import dtype_name
from fastlora.formula.cost import Problem
from fastlora.routes.triton_version import triton_version
from fastlora_kernels.configs import num_blocks, table_of
from fastlora_kernels.hopper import blocks

# Gluon is experimental: its names change from version to version.
_OLDEST_TRITON: Final = (3, 6)
_NEWEST_TRITON: Final = (3, 9)
# Measured on an H100 (docs/kernel-log.md, 19): rows of x; and of the multiprocessors in all waves of tiles,
# those that have one.
_LEAST_ROWS: Final = 768
_LEAST_FILLED: Final = 0.8
# Forward, with so few waves it shows that tiles of the first column make p too, unless K or N is short.
_FEW_WAVES: Final = 3
_SHORT: Final = 2048
_OFFERED: Final = (
    "by default where tiles of 128 x 256 fill the multiprocessors, else where `fastlora tune` has measured "
    "them to be the fastest"
)


def refusal(
    architecture: str, problem: Problem, *, dropout: bool = False, aligned: bool = True
) -> str | None:
    """Why they do not take a call, as a phrase; None if they do.

    Args:
        architecture: Of the GPU, by the name of its tile table.
        problem: Shape and dtypes.
        dropout: Whether there is dropout.
        aligned: Whether TMA can address x and W.
    """
    rows = problem.K % 8 == 0 and problem.N % 8 == 0  # of y and dx, which are contiguous
    dtypes = dtype_name(problem.dtype), dtype_name(problem.adapter_dtype)
    return _refusal_of_triton() or blocks.refusal(
        architecture, *dtypes, problem.r, aligned=aligned and rows, dropout=dropout
    )


def is_default(
    direction: str,
    architecture: str,
    problem: Problem,
    multiprocessors: int | None,
    *,
    dropout: bool,
    aligned: bool,
) -> bool:
    """Whether they take a pass unless `fastlora tune` chose otherwise.

    A program stays on its multiprocessor for all its tiles, so they lose where the last wave has few. Where
    K or N is short, the plain kernels lose more by filling a pipeline for each tile, or by reading x for p.

    Args:
        direction: "forward" or "backward".
        architecture: As in `refusal`.
        problem: As in `refusal`.
        multiprocessors: Of the GPU; None means those of the architecture's usual one.
        dropout: As in `refusal`.
        aligned: As in `refusal`.
    """
    multiprocessors = multiprocessors or table_of(architecture).multiprocessors
    columns = problem.N if direction == "forward" else problem.K
    tiles = num_blocks(problem.M, blocks.BLOCK_M) * num_blocks(columns, blocks.BLOCK_C)
    waves = num_blocks(tiles, multiprocessors)
    if problem.M < _LEAST_ROWS or tiles < _LEAST_FILLED * waves * multiprocessors:
        return False
    if direction == "forward" and waves <= _FEW_WAVES and min(problem.K, problem.N) > _SHORT:
        return False
    return not refusal(architecture, problem, dropout=dropout, aligned=aligned)


def refusal_here(architecture: str) -> str | None:
    """Why no call is taken on a GPU of an architecture by the Triton that is installed; None if some are."""
    return _refusal_of_triton() or blocks.refusal(architecture, "bfloat16", "bfloat16", 16)


def told_of(architecture: str, problem: Problem, *, dropout: bool, aligned: bool) -> str:
    """As `told`, of one call; arguments as in `refusal`."""
    why = refusal(architecture, problem, dropout=dropout, aligned=aligned)
    return f"not for this call: {why}" if why else _OFFERED


def told(device: torch.device) -> str:
    """Of a GPU, whether the persistent kernels are offered there, as a phrase to show."""
    from fastlora.routes.architecture import architecture_of

    where = architecture_of(device)
    why = refusal_here(where)
    return f"not here: {why}" if why else _OFFERED


def _refusal_of_triton() -> str | None:
    version = triton_version()
    if version is None:
        return "triton is not installed"
    if _OLDEST_TRITON <= version[:2] <= _NEWEST_TRITON:
        return None
    oldest, newest, found = (".".join(map(str, v)) for v in (_OLDEST_TRITON, _NEWEST_TRITON, version))
    return f"they were compiled with Triton {oldest} to {newest}, and this is {found}"
