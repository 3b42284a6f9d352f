"""fastlora: LoRA linear layers whose forward and backward each run as one fused Triton kernel."""

from fastlora.autograd import lora_linear
from fastlora.backend import BackendError, get_backend, set_backend
from fastlora.layer import FusedLoRALinear
from fastlora.reference import LoRAParametrization, ReferenceLoRALinear
from fastlora.version import __version__

__all__ = [
    "BackendError",
    "FusedLoRALinear",
    "LoRAParametrization",
    "ReferenceLoRALinear",
    "__version__",
    "get_backend",
    "lora_linear",
    "set_backend",
]
