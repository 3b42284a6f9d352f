"""The packed formats, by name. A new one is a file beside this, a line here, and its kernel."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from fastlora.formats.bnb_4bit import Bnb4bit
from fastlora.formats.bnb_int8 import BnbInt8
from fastlora.formats.format import Format
from fastlora.formats.fp8_linear import FP8Linear
from fastlora.formats.hqq import HQQ
from fastlora.formats.torchao_fp4 import MXFP4, NVFP4
from fastlora.formats.torchao_scaled import FLOAT8, INT8

FORMATS: Final[dict[str, Format]] = {
    one.name: one for one in (Bnb4bit(), BnbInt8(), FP8Linear(), INT8, FLOAT8, HQQ(), NVFP4, MXFP4)
}


def format_of(module: nn.Module | Any) -> Format | None:
    """The packed format of a linear layer; None for a plain layer and for formats that are not known."""
    return next((one for one in FORMATS.values() if one.holds(module)), None)
