"""A new adapter for a weight: its parameters, where they start and in which dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.layer.adapter import Adapter, Options
from fastlora.layer.starts import start


def new_adapter(
    weight: Tensor, options: Options, dtype: torch.dtype | None, norms: Tensor | None = None
) -> Adapter:
    """A new adapter for a weight [N, K], on its device. For a `dtype` of None see `adapter_dtype_over`.

    For a stack of weights [E, N, K], A and B are stacks too.

    Args:
        weight: W, or a stand-in with its shape, dtype and device.
        options: The adapter's.
        dtype: Of its parameters.
        norms: [N], the norms of W's rows, for DoRA.

    Raises:
        ValueError: If the options ask for DoRA and there are no norms, as for a stack.
    """
    if options.dora and norms is None:
        raise ValueError("dora must be False for experts, as in PEFT (leave them out by exclude_modules)")
    *stack, N, K = weight.shape
    if options.lora_bias and stack:
        raise ValueError("lora_bias must be False for experts (leave them out by exclude_modules)")
    kind: dict[str, Any] = {
        "device": weight.device,
        "dtype": arguments.adapter_dtype_over(weight.dtype, dtype),
    }
    # A and B are trained later, even if this is called in inference mode.
    with torch.inference_mode(False):
        A, B = (
            nn.Parameter(torch.empty(*stack, *shape, **kind)) for shape in ((options.r, K), (N, options.r))
        )
        third = None if norms is None else nn.Parameter(norms.detach().to(**kind, copy=True))
        if options.lora_bias:
            third = nn.Parameter(torch.zeros(N, **kind))
    start(A, B, options.init)
    return Adapter(A, B, options, third)
