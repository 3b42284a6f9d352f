"""fastlora's formula by one route for both passes, whatever would be chosen: each in a file of choices."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.methods.libraries import no_backend
from bench.methods.method import Method, bare
from fastlora.formula.operands import Needs, Operands, plain
from fastlora.routes.passes import Passes, passes_of
from fastlora.routes.route import route_on
from fastlora_kernels import choice_content


class ByRoute(torch.autograd.Function):
    """A layer by a route; it saves what fastlora's own function does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, o: Operands, route: Passes) -> Tensor:
        """[M, K] -> [M, N]."""
        y, p = route.forward(o)
        ctx.save_for_backward(x, *o.base.tensors, A, B, p, o.seed)
        ctx.rest = (o.s, o.dropout, route)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        x, W, A, B, p, seed = ctx.saved_tensors
        s, dropout, route = ctx.rest
        o = Operands(x, plain(W), None, A, B, s, dropout, seed)
        return *route.backward(o, dy, p, Needs(*ctx.needs_input_grad[:3])), None, None


def by_route(code: str, x: Tensor, *rest: Any, dropout: float = 0.0, **_: Any) -> Tensor:
    """y [M, N] by a route, by its name in a file of choices; a bare function, without a module's checks."""
    W, b, A, B, s = rest
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    o = Operands(x, plain(W), b, A, B, s, dropout, seed)
    y: Tensor = ByRoute.apply(x, A, B, o, passes_of(code))  # type: ignore[no-untyped-call]
    return y


def _no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Every route has kernels for what is low-rank."""
    return no_backend(device, dtype) or (None if (route := route_on(device, dtype)).is_fused else route.why)


# In a file of choices the plain kernels are a tile; their route is "triton", or the interpreter's.
BY_PLAIN_KERNELS: Final = Method(
    "fastlora-plain",
    "the kernels of fastlora that are not persistent, both passes, in a bare function",
    bare(partial(by_route, "triton")),
    why_absent=_no_kernels,
)
BY_VENDOR: Final = Method(
    f"fastlora-{choice_content.VENDOR}",
    f"the route {choice_content.VENDOR!r} of fastlora, both passes, in a bare function",
    bare(partial(by_route, choice_content.VENDOR)),
    why_absent=_no_kernels,
)
# Those beside what is taken by default, which is fastlora's own method.
BY_ROUTE: Final = (BY_PLAIN_KERNELS, BY_VENDOR)
