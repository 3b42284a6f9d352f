"""The methods that are compared, one a file."""

from __future__ import annotations

from typing import Final

from bench.methods.addmm import ADDMM
from bench.methods.compiled import COMPILED
from bench.methods.frozen import FROZEN
from bench.methods.full import FULL
from bench.methods.fused import FASTLORA, UNDROPPED
from bench.methods.lorafusion import LORAFUSION
from bench.methods.loralib import LORALIB
from bench.methods.method import Layer, Method
from bench.methods.parametrized import PARAMETRIZED
from bench.methods.peft import PEFT
from bench.methods.transformer_engine import TRANSFORMER_ENGINE
from bench.methods.unfused import UNFUSED

METHODS: Final = {
    method.name: method
    for method in (
        FROZEN,
        FULL,
        UNFUSED,
        COMPILED,
        ADDMM,
        PEFT,
        LORALIB,
        PARAMETRIZED,
        LORAFUSION,
        TRANSFORMER_ENGINE,
        FASTLORA,
        UNDROPPED,
    )
}

__all__ = [
    "ADDMM",
    "COMPILED",
    "FASTLORA",
    "FROZEN",
    "FULL",
    "LORAFUSION",
    "LORALIB",
    "METHODS",
    "PARAMETRIZED",
    "PEFT",
    "TRANSFORMER_ENGINE",
    "UNDROPPED",
    "UNFUSED",
    "Layer",
    "Method",
]
