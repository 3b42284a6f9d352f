"""Whether a call over a packed W has so few rows, as in decoding, that W is unpacked inside the product."""

from __future__ import annotations

from typing import Any, Final

import torch

from fastlora.formats.registry import FORMATS
from fastlora.formula.operands import BaseWeight, Needs, Operands
from fastlora.routes.decide import Decision, decide_for, is_aligned, problem_of

# Those whose unpacked tile is an operand of the matrix units as it is.
_DTYPES: Final = (torch.float16, torch.bfloat16)


def decision_of(o: Operands, needs: Needs, setting: str) -> Decision | None:
    """The decision of a call that `fused_packed.few_rows` takes; None if W is to be unpacked beforehand."""
    if (o.x.is_cpu and setting != "triton") or not takes(o.base, len(o.x)):
        return None
    aligned = is_aligned(o.x)
    decision = decide_for(problem_of(o), o.x.device, needs, setting, dropout=o.dropout, aligned=aligned)
    inside = decision.forward.is_fused and not decision.forward.unpacks_first
    return decision if inside else None


def takes(base: BaseWeight, M: int) -> bool:
    """Whether the kernel takes so many rows over this W, where the kernels run."""
    from fastlora.routes.plan import PACKED_ROWS

    return M <= PACKED_ROWS and base.dtype in _DTYPES and as_operand(base) is not None


def as_operand(base: BaseWeight) -> dict[str, Any] | None:
    """What the kernel reads W by; None if it cannot."""
    from fastlora.routes.plan import PACKED_COLUMNS

    return FORMATS[base.format].as_operand(base, PACKED_COLUMNS)
