"""Layers whose `weight` does not lie as W [N, K]: GPT-2's Conv1D and embeddings, [K, N], and convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def is_conv1d(module: object) -> bool:
    """Whether a module is exactly Transformers' Conv1D; told without importing Transformers."""
    cls = type(module)
    return (cls.__module__, cls.__name__) == ("transformers.pytorch_utils", "Conv1D")


def holds_transposed(layer: Any) -> bool:
    """Whether `layer.weight` is [K, N]: of a Conv1D or an embedding, or of the LoRA layer in its place."""
    return (
        bool(getattr(type(layer), "holds_transposed", False))
        or is_conv1d(layer)
        or isinstance(layer, nn.Embedding)
    )


def turned(layer: Any, W: Tensor) -> Tensor:
    """W [N, K] as a layer's `weight` lies, or that as W [N, K]: a view; of a convolution, only the latter."""
    if isinstance(layer, _ConvNd):
        return W.flatten(1)
    return W.t() if holds_transposed(layer) else W
