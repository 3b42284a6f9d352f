"""Linear maps that models hold in other ways than as an nn.Linear, so that they can be refused by name."""

from __future__ import annotations

from torch import nn


def other_linear_kind(name: str, module: nn.Module) -> str | None:
    """What holds linear maps here that LoRA cannot be given to, as a phrase; None where nothing known does.

    Known are the Conv1D of Transformers' GPT-2, whose weight is transposed, and the experts of a mixture that
    are slices of 3-D parameters, as in Transformers' Mixtral or Qwen3-MoE.

    Args:
        name: The name that the module is registered under.
        module: Any module.
    """
    kind = type(module).__name__
    if any(
        (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for cls in type(module).__mro__
    ):
        return f"{kind}, whose weight is [in, out]"
    stacked = [
        f"{own} {list(parameter.shape)}"
        for own, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3
    ]
    # Other 3-D parameters are no linear maps: position embeddings, a convolution's weight.
    if stacked and "expert" in f"{name.rpartition('.')[2]} {kind}".lower():
        return f"{kind}, whose experts are 3-D parameters ({', '.join(stacked)})"
    return None
