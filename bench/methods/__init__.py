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
from bench.methods.routes import BY_ROUTE

_FIRST = (FROZEN, FULL, UNFUSED, COMPILED, ADDMM, PEFT, LORALIB, PARAMETRIZED)
_LIBRARIES = (ACCELERATED, LORAFUSION, TRANSFORMER_ENGINE)

METHODS: Final[dict[str, Method]] = {
    one.name: one for one in (*_FIRST, *_LIBRARIES, FASTLORA, *BY_ROUTE, GROUPED, UNDROPPED)
}

# Those whose code is ours.
OWN: Final = (FASTLORA.name, *(one.name for one in BY_ROUTE), GROUPED.name, UNDROPPED.name)

# Those that are made for whole nets.
IN_NETS: Final = ("frozen", "full", "parametrized", "unfused", "loralib", "peft", "fastlora")

# Those that take experts in 3-D parameters.
IN_MIXTURES: Final = ("frozen", "full", "peft", "peft-fastlora", "fastlora")
