"""LoRAFusion (arXiv 2510.00206), from a checkout that the user names; none of its code is here.

Its non-TMA kernels, with the tiles that it ships for an H100 where it has none for the GPU at hand. What it
cannot take is left out of those cases: its own limits, each read in its sources or met by running it.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from bench.methods.method import Method, Update, bare, importable

# Names the folder that holds the package `lorafusion`; read by every process of a run.
CHECKOUT: Final = "LORAFUSION_CHECKOUT"

# The widest tile of its tables: its backward reads W and A up to a whole tile, past a ragged width.
_TILE: Final = 256
_RANKS: Final = (16, 32, 64, 128)

# Its TMA kernels are imported with the others, and fail there: they use what Triton dropped before 3.4.
# What is imported from their modules, by module.
_TMA_MODULES: Final[dict[str, dict[str, Any]]] = {
    "tma_utils": {"HAS_TMA_DESC": False},
    "fused_lora_xw_sb_tma": {"fused_lora_xw_sb_tma": None},
    "fused_lora_dyw_dsa_tma": {"fused_lora_dyw_dsa_tma": None},
}


def _function(x: Tensor, *others: Any, dropout: float = 0.0, **_: Any) -> Tensor:
    W, b, A, B, s = others
    fused = _load(os.environ[CHECKOUT]).fused_linear_lora
    # It wants a batch of sequences.
    y: Tensor = fused(x[None], W, A, B, s, dropout_p=dropout, linear_bias=b)[0]
    return y


def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot run."""
    checkout = os.environ.get(CHECKOUT)
    if checkout is None:
        return "--lorafusion PATH was not given"
    if device.type != "cuda":
        return "its kernels need a GPU"
    return importable(lambda: _load(checkout))


def why_not(layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
    """Why a layer is not for it."""
    if not update.dropout:
        return "without dropout its backward reads the shape of a mask that is None"
    if update.adapter_dtype != dtype:
        return "it wants x, W, A and B in one dtype"
    if update.r not in _RANKS:
        return "its rank is a block of Triton's: a power of two, 16 or more"
    if any(size % _TILE for size in layer):
        return f"it reads past widths that are no multiples of its tiles ({_TILE})"
    return None


@functools.lru_cache(maxsize=1)
def _load(checkout: str) -> Any:
    """Import `lorafusion.ops.lora_v1` from the checkout, with tiles for the GPU at hand."""
    if not (Path(checkout) / "lorafusion" / "ops" / "lora_v1.py").is_file():
        raise FileNotFoundError(f"{checkout} holds no lorafusion/ops/lora_v1.py")
    if checkout not in sys.path:
        sys.path.append(checkout)
    for name, content in _TMA_MODULES.items():
        empty = ModuleType(name)
        vars(empty).update(content)
        sys.modules.setdefault(f"lorafusion.ops.triton_ops.{name}", empty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its TMA kernels are not for this Triton
        from lorafusion.ops import lora_v1
        from lorafusion.ops.triton_ops import config
    config.HARDWARE_CONFIGS.setdefault(config.get_device_short_name(), config.H100_CONFIG)
    return lora_v1


LORAFUSION = Method(
    "lorafusion",
    "LoRAFusion's non-TMA kernels with the tiles it ships",
    bare(_function),
    why_absent=why_absent,
    why_not=why_not,
    external=True,
)
