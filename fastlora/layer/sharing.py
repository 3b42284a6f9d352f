"""Projections of one x that are computed together: whichever is called first computes all of them.

The layers, their parameters, names and hooks stay as they are. The first member of a group that is called
computes the outputs of all, in one pass; each other member takes its own from the thread's one slot when it
is called in turn, with the same x in the same circumstances. Else it computes alone.

The slot holds the outputs of one group only, and x by a weak reference: when nobody else holds x, as after
an exception between the members, no member can be called with it any more, and the slot lets go.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlora.autograd.grouped import grouped_lora_linear
from fastlora.formula.grouped import Projection
from fastlora.formula.operands import BaseWeight
from fastlora.layer import commits
from fastlora.layer.groups import MEMBERSHIP, Group, Round
from fastlora.routes.backend import get_backend

_SHARED: Final = "_fastlora_shared"
_MOVING: Final = "another thread was changing a model"


class Computed:
    """The outputs of one group's computation that were not taken yet, and the circumstances of it.

    Args:
        group: Whose outputs they are.
        opened: The round that it is.
        x: What all members were given.
        moved: `commits.moved` before the computation.
        projections: What the members computed.
        ys: Each member's output; None once it is taken.
    """

    def __init__(
        self,
        group: Group,
        opened: Round,
        x: Tensor,
        moved: int,
        projections: list[Projection],
        ys: list[Tensor | None],
    ) -> None:
        self.group: Group | None = group
        self.round = opened
        self.moved = moved
        self.version = x._version
        self.circumstances = circumstances(x)
        self.versions = [_versions(one) for one in projections]
        self.projections = projections
        self.ys = ys
        self.x: weakref.ref[Tensor] | None = weakref.ref(x, self.clear)

    def clear(self, _: object = None) -> None:
        """Hold nothing any more."""
        self.group = self.x = None
        self.ys = []
        self.projections = []

    def why_not(self, place: int, x: Tensor, own: Projection) -> str | None:
        """Why a member cannot take its output; None if it can."""
        if self.x is None or self.x() is not x:
            return "x is another tensor"
        if self.version != x._version:
            return "x was changed in place"
        if self.moved != commits.moved or not _same(own, self.projections[place]):
            return "the adapter or an option was changed"
        if self.versions[place] != _versions(own):
            return "a parameter was changed in place"
        now = circumstances(x)
        if now != self.circumstances:
            changed = zip(_CIRCUMSTANCES, now, self.circumstances, strict=True)
            return next(why for why, one, other in changed if one != other)
        return None

    def take(self, place: int) -> Tensor | None:
        """A member's output, which is then no longer held; nothing is, after the last."""
        y, self.ys[place] = self.ys[place], None
        self.round.waiting.discard(place)
        if self.group is not None:
            self.group.hits += 1
            if not self.round.waiting:
                self.group.end()
                self.clear()
        return y


class _Slot(threading.local):
    """A thread's one slot."""

    held: Computed | None = None


class Traced(NamedTuple):
    """As `Computed`, on the x of a trace."""

    group: Group
    version: int
    circumstances: tuple[Any, ...]
    ys: list[Tensor | None]


_slot = _Slot()

_CIRCUMSTANCES: Final = (
    "the grad mode changed",
    "x.requires_grad changed",
    "the backend setting changed",
    "autocast changed",
    "the dispatch modes changed",
    "the hooks on saved tensors changed, as at the border of activation checkpointing",
)


def circumstances(x: Tensor) -> tuple[Any, ...]:
    """What an output depends on beside x and the layer, as `_CIRCUMSTANCES` names it."""
    kind = x.device.type
    return (
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        x.requires_grad,
        get_backend(),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch._C._len_torch_dispatch_stack(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


def take(layer: Any, x: Tensor) -> Tensor | None:
    """The output [..., N] of a member of a group for x [..., K]; None if it must compute alone.

    Args:
        layer: It has a `_group` and a method `_projection(x)`, which gives its `Projection`, or why it must
            compute alone.
        x: As the layer is called with it.
    """
    group, place = getattr(layer, MEMBERSHIP)
    if torch.compiler.is_compiling():
        return _taken_in_trace(group, place, layer, x)
    if group.dissolved is not None:
        return None
    own = _why_alone(x) or layer._projection(x)
    if isinstance(own, str):
        group.alone[own] += 1
        return None
    held = _slot.held
    if held is not None:
        if held.group is group and held.ys[place] is not None:
            why = held.why_not(place, x, own)
            if why is None:
                return held.take(place)
            held.round.why = why
            return None
        held.clear()
    return _computed(group, place, layer, x, own)


def _computed(group: Group, place: int, layer: Any, x: Tensor, own: Projection) -> Tensor | None:
    """Compute all members' outputs, keep the others' in the slot, and return this member's."""
    moved = commits.moved
    found = _projections(group, place, layer, x, own)
    if isinstance(found, str) or moved & 1:
        group.alone[found if isinstance(found, str) else _MOVING] += 1
        return None
    group.judge()
    if group.dissolved is not None:
        return None
    try:
        ys: list[Tensor | None] = list(grouped_lora_linear(x, found))
    except (TypeError, ValueError):  # raised again by the member whose operands do not fit
        ys = []
    if not ys or commits.moved != moved:
        group.alone["the operands do not fit together" if not ys else _MOVING] += 1
        return None
    y, ys[place] = ys[place], None
    _slot.held = Computed(group, group.begin(place), x, moved, found, ys)
    return y


def _taken_in_trace(group: Group, place: int, layer: Any, x: Any) -> Tensor | None:
    """As `take`, while Dynamo traces.

    The outputs lie on x. It is mostly made in the trace, so that they leave nothing behind, and may be kept
    there also where activation checkpointing is traced, which allows no change of anything made before. There
    are no counts, which would become guards.
    """
    if group.dissolved is not None or _why_alone(x) is not None:
        return None
    own = layer._projection(x)
    if isinstance(own, str):
        return None
    held: Traced | None = getattr(x, _SHARED, None)
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    now = (torch.is_grad_enabled(), get_backend(), *autocast)
    if held is None or held.group is not group or held.ys[place] is None:
        found = _projections(group, place, layer, x, own)
        if isinstance(found, str):
            return None
        held = Traced(group, x._version, now, list(grouped_lora_linear(x, found)))
    elif held.circumstances != now:
        return None
    else:
        torch._check(
            held.version == x._version,
            lambda: "x must not be changed in place between projections that share it, in compiled code",
        )
    y = held.ys[place]
    held.ys[place] = None
    x._fastlora_shared = None if all(one is None for one in held.ys) else held
    return y


def _projections(group: Group, place: int, layer: Any, x: Tensor, own: Projection) -> list[Projection] | str:
    """What every member computes now; or why they cannot be computed together."""
    members = group.members
    if members[place] is not layer:
        return "the layer is a copy of a member"
    found = []
    for name, member in zip(group.names, members, strict=True):
        if member is None:
            return f"{name} is gone"
        one = own if member is layer else member._projection(x)
        if isinstance(one, str):
            return f"{name}: {one}"
        if not torch.compiler.is_compiling() and _of_inference(one):
            return f"{name}: an operand is an inference tensor, whose changes cannot be seen"
        found.append(one)
    return found


def _of_inference(one: Projection) -> bool:
    stored = one.W.tensors if isinstance(one.W, BaseWeight) else (one.W,)
    return any(tensor is not None and tensor.is_inference() for tensor in (*stored, *one[1:4]))


def _why_alone(x: Tensor) -> str | None:
    """Why a call with this x is not grouped, whatever the layers."""
    if type(x) is not Tensor or x.is_nested:
        return "x is not a plain tensor"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is at work"
    if torch.compiler.is_compiling():
        return "the model is being exported" if torch.compiler.is_exporting() else None
    if torch._C._get_tracing_state():
        return "the model is being traced"
    return "x is an inference tensor, whose changes cannot be seen" if x.is_inference() else None


# Spelled out, as loops over a few tensors take longer than what they ask.
def _same(one: Projection, other: Projection) -> bool:
    W, b, A, B, s, dropout = one
    return (
        (W is other[0] or _same_packed(W, other[0]))
        and b is other[1]
        and A is other[2]
        and B is other[3]
        and s == other[4]
        and dropout == other[5]
    )


def _same_packed(one: object, other: object) -> bool:
    """Whether two are the same memory read in the same way: a packed W is described anew at each call."""
    if not (isinstance(one, BaseWeight) and isinstance(other, BaseWeight)):
        return False
    places = [[tensor.data_ptr() for tensor in W.tensors] for W in (one, other)]
    return places[0] == places[1] and one._replace(tensors=()) == other._replace(tensors=())


def _versions(one: Projection) -> int:
    """Grows with every change in place of a parameter."""
    W, b, A, B, _, _ = one
    total: int = sum(tensor._version for tensor in W.tensors) if isinstance(W, BaseWeight) else W._version
    if b is not None:
        total += b._version
    return total if A is None or B is None else total + A._version + B._version
