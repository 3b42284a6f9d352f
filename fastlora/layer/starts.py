"""Where A and B of a new adapter start: at an update that is exactly zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_ORTHOGONAL_STD = 0.1  # PEFT's


def start(A: Tensor, B: Tensor, init: str, of_embedding: bool = False) -> None:
    """Initialize A [r, K] by `init` and B [N, r] so that B A is exactly zero; of stacks, each for itself.

    An embedding's A starts at zero, whatever `init` says, so that the row of its padding has no update.
    """
    if of_embedding:
        nn.init.zeros_(A)
        nn.init.normal_(B)
        return
    if A.dim() > 2:
        with torch.no_grad():
            for A_e, B_e in zip(A, B, strict=True):
                start(A_e, B_e, init)
        return
    if init == "gaussian":
        nn.init.normal_(A, std=1 / A.shape[0])
    elif init == "kaiming":
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    else:
        nn.init.normal_(A, std=_ORTHOGONAL_STD)
    nn.init.zeros_(B)
    if init == "orthogonal":
        halfway = (A.shape[0] + 1) // 2
        with torch.no_grad():
            A[halfway:] = 0
            B[:, halfway:].normal_(std=_ORTHOGONAL_STD)
