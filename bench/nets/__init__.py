"""Whole nets fine-tuned: the tuners that are compared, one a file, and how a training step is timed."""

from __future__ import annotations

from typing import Final

from bench.nets.frozen import FROZEN
from bench.nets.full import FULL
from bench.nets.fused import FASTLORA
from bench.nets.loralib_library import LORALIB
from bench.nets.parametrized import PARAMETRIZED
from bench.nets.peft_library import PEFT
from bench.nets.tuner import Tuned, Tuner, Update
from bench.nets.unfused import UNFUSED

TUNERS: Final = {
    tuner.name: tuner for tuner in (FROZEN, FULL, PARAMETRIZED, UNFUSED, LORALIB, PEFT, FASTLORA)
}

__all__ = [
    "FASTLORA",
    "FROZEN",
    "FULL",
    "LORALIB",
    "PARAMETRIZED",
    "PEFT",
    "TUNERS",
    "UNFUSED",
    "Tuned",
    "Tuner",
    "Update",
]
