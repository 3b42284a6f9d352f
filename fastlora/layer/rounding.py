"""What merging packed layers does to their memory and their values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from torch import nn

from fastlora.formula.operands import BaseWeight
from fastlora.layer.quantized import QuantizedLoRALinear


def warn_of_rounding(layers: Mapping[str, tuple[QuantizedLoRALinear, nn.Linear]]) -> None:
    """Say what merging packed layers into plain ones does to their memory and their values."""
    shares = {name: layer.rounding(plain.weight.dtype) for name, (layer, plain) in layers.items()}
    worst = max(shares, key=lambda name: -1.0 if math.isnan(shares[name]) else shares[name])
    packed = sum(bytes_of(layer.base) for layer, _ in layers.values())
    whole = sum(plain.weight.nbytes for _, plain in layers.values())
    warnings.warn(
        f"merging {len(layers)} packed layers makes them plain: {whole / 1e6:,.1f} MB of weights instead of "
        f"{packed / 1e6:,.1f} MB. Rounding W + s B A to its dtype moves it by at most {shares[worst]:.1%} of "
        f"the update (layer {worst!r}); pack the merged model anew and the update may drown in that rounding",
        stacklevel=4,
    )


def bytes_of(base: BaseWeight) -> int:
    """Bytes of the tensors that hold W."""
    return sum(tensor.numel() * tensor.itemsize for tensor in base.tensors)
