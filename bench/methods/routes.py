"""fastlora's formula by one route for both passes, whatever would be chosen: each in a file of choices."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bench.methods.libraries import no_backend
from bench.methods.method import Method, Update, bare
from fastlora.formula.cost import Problem
from fastlora.formula.operands import Needs, Operands, plain
from fastlora.routes.architecture import architecture_of
from fastlora.routes.choices import WORDS
from fastlora.routes.passes import Passes, passes_of
from fastlora.routes.persistent import PERSISTENT_CODES, refusal, refusal_here
from fastlora.routes.route import route_on
from fastlora.tuning.proofs import prove
from fastlora.tuning.trial import Job
from fastlora_kernels import choice_content

_REPEATS: Final = 20


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


def _no_persistent_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    return "it needs a GPU" if device.type != "cuda" else refusal_here(architecture_of(device))


def _not_persistent(code: str, layer: tuple[int, int], dtype: torch.dtype, update: Update) -> str | None:
    K, N = layer
    problem = Problem(1, K, N, update.r, dtype, update.adapter_dtype)
    return refusal(code, "sm_90", problem, dropout=update.dropout > 0)


def why_unproven(code: str, problem: Problem) -> str | None:
    """Why persistent kernels are not to be trusted on this machine's GPU; None if both passes are right.

    `code` is one of PERSISTENT_CODES. Each pass is proven in a process of its own, so one that hangs costs
    its time alone.
    """
    for direction in choice_content.DIRECTIONS:
        (why,) = prove(Job("cuda", direction, problem, False, _REPEATS), [code])
        if why is not None:
            return f"{direction}: {why}"
    return None


BY_VENDOR: Final = Method(
    f"fastlora-{choice_content.VENDOR}",
    f"the route {choice_content.VENDOR!r} of fastlora, both passes, in a bare function",
    bare(partial(by_route, choice_content.VENDOR)),
    why_absent=_no_kernels,
)
PERSISTENT_METHODS: Final = {
    code: Method(
        f"fastlora-{code}",
        f"{WORDS[code]} of fastlora, for sm_90, both passes, in a bare function",
        bare(partial(by_route, code)),
        why_absent=_no_persistent_kernels,
        why_not=partial(_not_persistent, code),
        drops=False,
    )
    for code in PERSISTENT_CODES
}
# Those beside the fused kernels, which are fastlora's own method: each of choice_content.CODES.
BY_ROUTE: Final = (BY_VENDOR, *PERSISTENT_METHODS.values())
