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
from typing import Any, Final

import torch
from torch import Tensor

from fastlora.autograd.grouped import grouped_lora_linear
from fastlora.formula.grouped import Projection
from fastlora.layer import commits
from fastlora.layer.circumstances import change, circumstances, is_same, versions, why_alone_now
from fastlora.layer.groups import Group, Round
from fastlora.layer.projection import projections_of
from fastlora.layer.sharing_in_trace import taken_in_trace

_MOVING: Final = "another thread was changing a model"
_OF_INFERENCE: Final = "a parameter is an inference tensor, whose changes cannot be seen"


class Computed:
    """The outputs of one group's computation that were not taken yet, and the circumstances of it.

    Args:
        group: Whose outputs they are.
        opened: The round that it is.
        x: What all members were given.
        moved: `commits.moved` before the computation.
        projections: What the members computed.
        changes: The `versions` of each of these.
        ys: Each member's output; None once it is taken.
    """

    __slots__ = ("changes", "circumstances", "group", "moved", "projections", "round", "version", "x", "ys")

    def __init__(
        self,
        group: Group,
        opened: Round,
        x: Tensor,
        moved: int,
        projections: list[Projection],
        changes: list[int],
        ys: list[Tensor | None],
    ) -> None:
        self.group: Group | None = group
        self.round = opened
        self.moved = moved
        self.version = x._version
        self.circumstances = circumstances(x)
        self.changes = changes
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
        if self.moved != commits.moved or not is_same(own, self.projections[place]):
            return "the adapter or an option was changed"
        if self.changes[place] != versions(own):
            return "a parameter was changed in place"
        return change(circumstances(x), self.circumstances)

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


_slot = _Slot()


def take(layer: Any, x: Tensor) -> Tensor | None:
    """The output [..., N] of a member of a group for x [..., K]; None if it must compute alone.

    Args:
        layer: It has a `_group` and a method `_projection(x)`, which gives its `Projection`, or why it must
            compute alone.
        x: As the layer is called with it.
    """
    group, place = layer._group
    if torch.compiler.is_compiling():
        return taken_in_trace(group, place, layer, x)
    if group.dissolved is not None:
        return None
    own = why_alone_now(x) or layer._projection(x)
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
    found = projections_of(group, place, layer, x, own)
    if isinstance(found, str) or moved & 1:
        group.alone[found if isinstance(found, str) else _MOVING] += 1
        return None
    try:
        changes = [versions(one) for one in found]
    except RuntimeError:
        group.alone[_OF_INFERENCE] += 1
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
    _slot.held = Computed(group, group.begin(place), x, moved, found, changes, ys)
    return y
