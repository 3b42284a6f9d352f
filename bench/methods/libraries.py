"""PEFT by the call that its users make, and Microsoft's loralib by the layer of its README."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bench.methods.method import Method, Pair, Tuned, Update, fresh_pair, importable, named, replacing


def tune_peft(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """get_peft_model, and A and B in the dtype asked for."""
    from peft import LoraConfig, get_peft_model

    # PEFT annotates an integer alpha, and computes with whatever number it gets.
    config = LoraConfig(
        r=update.r, lora_alpha=update.alpha, lora_dropout=update.dropout, target_modules=list(names)
    )  # type: ignore[arg-type]
    wrapped = get_peft_model(model, config).train()
    pairs = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        A, B = (factor["default"].to(update.adapter_dtype).weight for factor in (layer.lora_A, layer.lora_B))
        pairs[name] = (A, B)
    return Tuned(wrapped, named(pairs))


def _peft_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    def importing() -> None:
        from peft import LoraConfig, get_peft_model  # noqa: F401

    return importable(importing) if find_spec("peft") else "peft is not installed"


def _loralib_layer(linear: nn.Linear, update: Update) -> tuple[nn.Module, Pair]:
    """A loralib.Linear in training mode with the layer's own weight and bias, both frozen.

    `merge_weights` is off: with it, `eval` adds the update into the weight, which is then not as it was.
    """
    from loralib import Linear

    N, K = linear.weight.shape
    options: dict[str, Any] = {"lora_alpha": update.alpha, "lora_dropout": update.dropout}
    options |= {"merge_weights": False, "bias": linear.bias is not None, "dtype": linear.weight.dtype}
    # On "meta" no weight is allocated and initialized only to be replaced.
    layer: Any = Linear(K, N, r=update.r, device="meta", **options)
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.lora_A, layer.lora_B = fresh_pair(linear, update.r, linear.weight.dtype)
    return layer, (layer.lora_A, layer.lora_B)


def _loralib_absent(device: torch.device, dtype: torch.dtype) -> str | None:
    return None if find_spec("loralib") else "loralib is not installed"


def _not_mixed(layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
    return None if update.adapter_dtype == dtype else "it multiplies x by A as it is: one dtype for both"


PEFT = Method(
    "peft", "Hugging Face's PEFT: get_peft_model", tune_peft, why_absent=_peft_absent, external=True
)
LORALIB = Method(
    "loralib",
    "Microsoft's loralib.Linear",
    replacing(_loralib_layer),
    why_absent=_loralib_absent,
    why_not=_not_mixed,
    external=True,
)
