"""Imports from PEFT, and the one place that checks that it is installed in the right version."""

from __future__ import annotations

try:
    import peft
    from peft.tuners.lora import Linear, LoraConfig, LoraModel
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.lora.variants import DoraLinearVariant
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError as error:
    raise ImportError(
        'fastlora.integrations.peft needs PEFT: pip install "fastlora-triton[peft]"', name=error.name
    ) from error

_KNOWN = "0.21."
if not peft.__version__.startswith(_KNOWN):
    # Which forwards may be replaced was determined from this version's source; another may compute more.
    raise ImportError(
        f"fastlora.integrations.peft knows PEFT {_KNOWN}x; installed is {peft.__version__}", name="peft"
    )

__all__ = [
    "BaseTunerLayer",
    "DoraLinearLayer",
    "DoraLinearVariant",
    "Linear",
    "LoraConfig",
    "LoraModel",
    "ParamWrapper",
]
