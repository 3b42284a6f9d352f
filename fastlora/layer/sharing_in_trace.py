"""Projections of one x that are computed together in compiled code: as `sharing`, while Dynamo traces."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastlora.autograd.grouped import grouped_lora_linear
from fastlora.layer.circumstances import why_alone
from fastlora.layer.groups import Group
from fastlora.layer.projection import projections_of
from fastlora.routes.backend import get_backend

_SHARED: Final = "_fastlora_shared"


class Traced(NamedTuple):
    """The outputs of one group's computation that were not taken yet, and the circumstances of it."""

    group: Group
    version: int
    circumstances: tuple[Any, ...]
    ys: list[Tensor | None]


def taken_in_trace(group: Group, place: int, layer: Any, x: Any) -> Tensor | None:
    """The output of a member of a group; None if it must compute alone.

    The outputs lie on x. It is mostly made in the trace, so that they leave nothing behind, and may be kept
    there also where activation checkpointing is traced, which allows no change of anything made before. There
    are no counts, which would become guards.
    """
    if group.dissolved is not None or why_alone(x) is not None or torch.compiler.is_exporting():
        return None
    own = layer._projection(x)
    if isinstance(own, str):
        return None
    held: Traced | None = getattr(x, _SHARED, None)
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    now = (torch.is_grad_enabled(), get_backend(), *autocast)
    if held is None or held.group is not group or held.ys[place] is None:
        found = projections_of(group, place, layer, x, own)
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
