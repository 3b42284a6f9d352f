"""The methods that are compared, one a file."""

from __future__ import annotations

from typing import Final

from bench.methods.addmm import ADDMM
from bench.methods.frozen import FROZEN
from bench.methods.full import FULL
from bench.methods.fused import FASTLORA
from bench.methods.method import Layer, Method
from bench.methods.unfused import UNFUSED

METHODS: Final = {method.name: method for method in (FROZEN, FULL, UNFUSED, ADDMM, FASTLORA)}

__all__ = ["ADDMM", "FASTLORA", "FROZEN", "FULL", "METHODS", "UNFUSED", "Layer", "Method"]
