"""Adapters on disk and on the hub, in PEFT's format; PEFT need not be installed."""

from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.hotswap import hot_swap
from fastlora.adapter_files.hub import from_pretrained, push_to_hub
from fastlora.adapter_files.load import load_adapter, load_pretrained
from fastlora.adapter_files.save import save_adapter, save_pretrained

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
