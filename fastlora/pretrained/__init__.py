"""Adapters on disk and on the hub, in PEFT's format; PEFT need not be installed."""

from fastlora.pretrained.errors import AdapterError
from fastlora.pretrained.hotswap import hot_swap
from fastlora.pretrained.load import load_adapter, load_pretrained
from fastlora.pretrained.save import save_adapter, save_pretrained

__all__ = ["AdapterError", "hot_swap", "load_adapter", "load_pretrained", "save_adapter", "save_pretrained"]
