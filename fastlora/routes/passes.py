"""The code of each route that computes a layer alone, by the route's name."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fastlora.formula.operands import Needs, Operands
from fastlora.routes import cpu, vendor


class Passes(Protocol):
    """A route: both passes of a layer."""

    def forward(self, o: Operands, /) -> tuple[Tensor, Tensor]:
        """y [M, N] in x's dtype and p [M, r] in fp32."""

    def backward(
        self, o: Operands, dy: Tensor, p: Tensor, needs: Needs, /
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx [M, K], dA [r, K] and dB [N, r]; None if not needed."""


def passes_of(route: str, on_cpu: bool = False) -> Passes:
    """A route by its name, which is also its code's in a file of choices.

    Args:
        route: As in `Route`.
        on_cpu: Whether the tensors are on a CPU, which has its own order of torch's products.
    """
    if route in ("triton", "interpreter"):
        from fastlora.routes import fused  # Triton reads TRITON_INTERPRET when it is imported

        return fused
    if route == "vendor":
        from fastlora.routes import vendor_beside_kernels

        return vendor_beside_kernels
    if route == "persistent":
        from fastlora.routes import hopper

        return hopper
    return cpu if on_cpu else vendor
