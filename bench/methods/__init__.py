"""The methods that are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch

from bench.methods.by_hand import ADDMM, COMPILED, FROZEN, FULL, PARAMETRIZED, UNFUSED
from bench.methods.libraries import (
    ACCELERATED,
    FASTLORA,
    GROUPED,
    LORALIB,
    PEFT,
    UNDROPPED,
)
from bench.methods.method import Method
from bench.methods.routes import BY_ROUTE

_FIRST = (FROZEN, FULL, UNFUSED, COMPILED, ADDMM, PEFT, LORALIB, PARAMETRIZED)
_LIBRARIES = (ACCELERATED,)

METHODS: Final[dict[str, Method]] = {
    one.name: one for one in (*_FIRST, *_LIBRARIES, FASTLORA, *BY_ROUTE, GROUPED, UNDROPPED)
}

# Those whose code is ours.
OWN: Final = (FASTLORA.name, *(one.name for one in BY_ROUTE), GROUPED.name, UNDROPPED.name)

# Those that are made for whole nets.
IN_NETS: Final = ("frozen", "full", "parametrized", "unfused", "loralib", "peft", "fastlora")

# Those that take experts in 3-D parameters.
IN_MIXTURES: Final = ("frozen", "full", "peft", "peft-fastlora", "fastlora")


def present(
    names: Iterable[str], device: torch.device, dtype: torch.dtype
) -> tuple[list[Method], dict[str, str]]:
    """The methods that can run on a device, and why the others cannot, by name."""
    reasons = {name: METHODS[name].why_absent(device, dtype) for name in names}
    absent = {name: why for name, why in reasons.items() if why is not None}
    return [METHODS[name] for name in reasons if name not in absent], absent
