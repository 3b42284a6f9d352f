"""Adapters on disk and on the hub, in PEFT's format; PEFT need not be installed."""

from fastlora import beside
from fastlora.pretrained.errors import AdapterError
from fastlora.pretrained.hotswap import hot_swap
from fastlora.pretrained.hub import from_pretrained, push_to_hub
from fastlora.pretrained.load import load_adapter, load_pretrained
from fastlora.pretrained.save import save_adapter, save_pretrained, write_beside

beside.writers.append(write_beside)

__all__ = [
    "AdapterError",
    "from_pretrained",
    "hot_swap",
    "load_adapter",
    "load_pretrained",
    "push_to_hub",
    "save_adapter",
    "save_pretrained",
]
