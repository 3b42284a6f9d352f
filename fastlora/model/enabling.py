"""Switching every update of a model off and on again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from fastlora.arguments import check_bool
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.token_rows import TokenRows
from fastlora.model.biases import warn_if_trained
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.token_rows import token_rows


@exclusive
def set_lora_enabled(model: nn.Module, on: bool) -> None:
    """Switch every update on or off, rows of tokens too; when off, forward applies W alone.

    Biases that an adapter trains stay as trained, as in PEFT, and a warning says so.

    Raises:
        TypeError: If `on` is not a bool.
        ValueError: If there is no LoRA layer.
    """
    if not check_bool(on, "on"):
        warn_if_trained(model, "switching LoRA off")
    _enable(dict.fromkeys(_switches(model), on))


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Switch every update off for a `with` block; afterwards each layer is as before.

    Raises:
        TypeError: If `model` is not an nn.Module.
        ValueError: If there is no LoRA layer.
    """
    before = {each: each.enabled for each in _switches(model)}
    try:
        try:
            set_lora_enabled(model, False)
            yield
        finally:
            _enable(before)
    finally:  # a second time, as Ctrl-C may have come just before the first call
        _enable(before)


def _switches(model: nn.Module) -> list[LoRALayer | TokenRows]:
    """What has an `enabled`: the LoRA layers and the rows of tokens."""
    return [*existing_layers(model).values(), *(rows for _, _, rows in token_rows(model))]


@exclusive
def _enable(switches: Mapping[LoRALayer | TokenRows, bool]) -> None:
    with commit() as changing:
        for layer, on in switches.items():
            changing.put(vars(layer), "enabled", on)
