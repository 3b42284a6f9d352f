"""The forward of a module of experts with LoRA, as Transformers' own implementations do it, step by step.

The tokens are sorted by expert once. Each projection reads its W where it lies, a run of tokens at a time;
the activation is the module's own. The last projection multiplies by the router's factors and sums over a
token's experts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlora.experts.stacks import DOWN, up_of
from fastlora.layer.sharding import is_dtensor
from fastlora.segments.function import linear_by_runs
from fastlora.segments.operands import RunOperands
from fastlora.segments.plan import Plan, plan_of


class Update(NamedTuple):
    """The update of a stack: A [E, r, K], B [E, N, r], s, and the dropout to apply now."""

    A: Tensor
    B: Tensor
    s: float
    dropout: float


def experts_forward(
    experts: nn.Module,
    updates: Mapping[str, Update],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """The experts' output for tokens that the router has sent.

    Under autocast it computes in W's dtype, as Transformers' grouped_mm does.

    Args:
        experts: A module that takes Transformers' hook.
        updates: By the name of the parameter that each is for; a projection without one is W alone.
        hidden_states: [T, K].
        top_k_index: [T, k], the experts of each token.
        top_k_weights: [T, k], the router's factors.

    Returns:
        [T, K] in the dtype of `hidden_states`.

    Raises:
        TypeError: If the experts are spread over processes.
    """
    kind = hidden_states.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return experts_forward(experts, updates, hidden_states, top_k_index, top_k_weights)
    own: Any = experts
    _check_whole(experts)
    up = up_of(experts)
    plan = plan_of(top_k_index, getattr(experts, up).shape[0])
    h = _projected(experts, up, updates.get(up), hidden_states, plan, gathers=True)
    h = own._apply_gate(h) if own.has_gate else own.act_fn(h)
    if own.has_post_expert_norm:
        y = own.post_expert_norm(_projected(experts, DOWN, updates.get(DOWN), h, plan))
        y = _summed(y, plan, top_k_weights)
    else:
        y = _projected(experts, DOWN, updates.get(DOWN), h, plan, weights=top_k_weights)
    return y.to(hidden_states.dtype)


def _projected(
    experts: nn.Module,
    name: str,
    update: Update | None,
    x: Tensor,
    plan: Plan,
    *,
    gathers: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    own: Any = experts
    W, b = getattr(own, name), getattr(own, f"{name}_bias") if own.has_bias else None
    if W.requires_grad or (b is not None and b.requires_grad):
        warnings.warn(
            f"{name} of experts with LoRA requires a gradient, and gets none; to train it use remove_lora "
            "and unfreeze",
            stacklevel=2,
        )
        W, b = W.detach(), None if b is None else b.detach()
    W = W.transpose(1, 2) if own.is_transposed else W
    A, B, s, dropout = update if update is not None else (None, None, 0.0, 0.0)
    # Drawn on the device: needs no synchronization.
    seed = torch.randint(2**62, (1,), device=x.device) if dropout > 0 else None
    o = RunOperands(x.to(W.dtype), W, b, A, B, s, plan, gathers, weights, dropout, seed)
    return linear_by_runs(o)


def _summed(y: Tensor, plan: Plan, weights: Tensor) -> Tensor:
    """[S, N] sorted by expert -> [T, N]: the sum over a token's experts, each times its factor."""
    in_order = torch.empty_like(plan.order)
    in_order[plan.order] = torch.arange(len(plan.order), device=y.device)
    return (y[in_order].view(*weights.shape, -1) * weights[..., None]).sum(1)


def _check_whole(experts: Any) -> None:
    if experts._is_expert_parallel or any(map(is_dtensor, experts._parameters.values())):
        raise TypeError(
            "experts with LoRA must be whole in every process; these are spread over processes (shard the "
            "layers around them by fully_shard, which gathers them for a forward pass)"
        )
