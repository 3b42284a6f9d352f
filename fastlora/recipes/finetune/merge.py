"""A plain model from a base and an adapter: W + s B A in W's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlora.adapter_files import load_pretrained
from fastlora.model.find_layers import lora_layers
from fastlora.model.remove import remove_lora
from fastlora.recipes.finetune.base import bars_on_terminals, base_of_adapter, load_base, load_tokenizer
from fastlora.recipes.frame import check_extras, staged
from fastlora.recipes.options import AUTO


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        model: The base's name.
        layers: How many layers the adapter was merged into.
        parameters: Of the model.
        out: The folder.
    """

    model: str
    layers: int
    parameters: int
    out: Path


def merge(adapter: Path, model: str | None, out: Path, dtype: str = AUTO) -> Merged:
    """Write a model with the adapter merged into its weights, and its tokenizer; Transformers reads it.

    The base is taken unpacked, also for an adapter that was trained over 4 bits.

    Args:
        adapter: The adapter's folder.
        model: The base; None means the one that the adapter names.
        out: Folder for the model; it must be new or empty.
        dtype: Of the weights; "auto" means what the base's files say.

    Raises:
        AdapterError: If the adapter's files are unsound or do not fit the model.
        FileExistsError: If `out` holds something, or is a link to nothing.
        MissingExtraError: If a package is not installed.
        ModelError: If there is no such model or adapter.
        OSError: If a file cannot be written.
    """
    check_extras("merging", ("transformers",), "finetune")
    if out.is_symlink() and not out.exists():
        raise FileExistsError(f"out must be a new or empty folder; {str(out)!r} is a link to nothing")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out must be a new or empty folder; {str(out)!r} holds something")
    with bars_on_terminals():
        return _merge(adapter, model or base_of_adapter(adapter), out, dtype)


def _merge(adapter: Path, name: str, out: Path, dtype: str) -> Merged:
    tokenizer = load_tokenizer(str(adapter) if (adapter / "tokenizer_config.json").is_file() else name)
    base = load_base(name, dtype if dtype == AUTO else getattr(torch, dtype))
    load_pretrained(base, adapter)
    layers = len(list(lora_layers(base)))
    plain: Any = remove_lora(base, merge=True)
    with staged(out, ()) as draft:
        plain.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return Merged(name, layers, sum(p.numel() for p in plain.parameters()), out)
