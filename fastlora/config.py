"""What a LoRA update is configured by, and which values are sound."""

from __future__ import annotations

import math
from typing import Final

import torch

INITS: Final = ("gaussian", "kaiming")


def check_rank(r: object) -> int:
    """R, if it is an int >= 1; else TypeError or ValueError."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"r must be an int >= 1; got {r!r}")
    if r < 1:
        raise ValueError(f"r must be an int >= 1; got {r}")
    return r


def check_alpha(alpha: object, r: int) -> float:
    """Alpha as a finite number, r where it is None; else TypeError or ValueError."""
    if alpha is None:
        return float(r)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha must be a finite number or None (meaning r); got {alpha!r}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number or None (meaning r); got {alpha!r}")
    return float(alpha)


def check_dropout(dropout: object) -> float:
    """The dropout probability, if it lies in [0, 1); else TypeError or ValueError."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise TypeError(f"dropout must be a probability in [0, 1); got {dropout!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1); got {dropout!r}")
    return float(dropout)


def check_init(init: object) -> str:
    """The name of an initialization; else ValueError listing the known ones."""
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    return str(init)


def check_dtype(name: str, dtype: object) -> None:
    """Raise TypeError unless `dtype` is None or a real floating dtype."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    raise TypeError(f"{name} must be a floating dtype such as torch.bfloat16, or None; got {dtype!r}")


def scaling(r: int, alpha: float, rslora: bool) -> float:
    """S = alpha / r (arXiv 2106.09685, section 4.1), or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(r) if rslora else r)
