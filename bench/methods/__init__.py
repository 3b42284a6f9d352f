"""The methods that are compared."""

from __future__ import annotations

from typing import Final

from bench.methods.by_hand import ADDMM, COMPILED, FROZEN, FULL, PARAMETRIZED, UNFUSED
from bench.methods.libraries import (
    ACCELERATED,
    FASTLORA,
    GROUPED,
    LORALIB,
    PEFT,
    TRANSFORMER_ENGINE,
    UNDROPPED,
)
from bench.methods.lorafusion import LORAFUSION
from bench.methods.method import Method
from bench.methods.persistent import PERSISTENT

_FIRST = (FROZEN, FULL, UNFUSED, COMPILED, ADDMM, PEFT, LORALIB, PARAMETRIZED)

METHODS: Final[dict[str, Method]] = {
    one.name: one
    for one in (
        *_FIRST,
        ACCELERATED,
        LORAFUSION,
        TRANSFORMER_ENGINE,
        FASTLORA,
        PERSISTENT,
        GROUPED,
        UNDROPPED,
    )
}

# Those that are made for whole nets.
IN_NETS: Final = ("frozen", "full", "parametrized", "unfused", "loralib", "peft", "fastlora")

# Those that take experts in 3-D parameters.
IN_MIXTURES: Final = ("frozen", "full", "peft", "peft-fastlora", "fastlora")
