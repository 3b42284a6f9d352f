"""Groups of layers that are given the same x: who belongs to one, what was counted, and when it ends.

A group in which not every member took its output (see `sharing`) in two rounds in a row is dissolved.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from torch import nn

MEMBERSHIP: Final = "_group"
_PATIENCE: Final = 2  # rounds in a row that fail


class Membership(NamedTuple):
    """What a layer knows of its group: which it is, and its place there."""

    group: Group
    place: int


class Group:
    """Layers that are given the same x. A copy of one layer is in no group; copied together, they stay one.

    Args:
        names: The layers' names in their model, at most one layer each.

    Attributes:
        names: As given.
        rounds: How often the group was computed.
        hits: How often a member took its output.
        misses: Rounds in which not every member took its own, by the reason.
        alone: Calls of members that could not be grouped, by the reason.
        dissolved: Why the group is no longer computed together; None while it is.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.rounds = self.hits = 0
        self.misses: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.dissolved: str | None = None
        self._members: list[weakref.ref[nn.Module] | None] = [None] * len(names)
        self._failed = 0
        # By thread, the round that not every member has taken part in yet.
        self._open: dict[int, Round] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start with no members and no counts: each copied layer joins by itself."""
        return Group, (self.names,)

    def join(self, layer: nn.Module, place: int) -> None:
        """Make a layer the member at this place, unless there is one."""
        if self._members[place] is None:
            self._members[place] = weakref.ref(layer)

    @property
    def members(self) -> tuple[Any, ...]:
        """The layers; None where one is missing or gone."""
        return tuple(None if ref is None else ref() for ref in self._members)

    def short_names(self) -> Iterator[str]:
        """The last part of each name."""
        return (name.rpartition(".")[2] for name in self.names)

    def judge(self) -> None:
        """Count the thread's last round as a miss if not every member has taken its output."""
        before = self._open.pop(threading.get_ident(), None)
        if before is not None:
            self._missed(before.reason(self))

    def begin(self, place: int) -> Round:
        """A new round, opened by the member at this place."""
        self._open[threading.get_ident()] = opened = Round(place, len(self.names))
        self.rounds += 1
        return opened

    def end(self) -> None:
        """Every member has taken its output."""
        self._open.pop(threading.get_ident(), None)
        self._failed = 0

    def _missed(self, why: str) -> None:
        self.misses[why] += 1
        self._failed += 1
        if self._failed == _PATIENCE and self.dissolved is None:
            self.dissolved = why
            warnings.warn(
                f"{', '.join(self.names)} are no longer computed together: {why}, {_PATIENCE} times in a row "
                "(group_counts tells of all groups)",
                stacklevel=6,
            )


class Round:
    """Who has taken an output of one computation, and why another could not."""

    def __init__(self, first: int, members: int) -> None:
        self.waiting = set(range(members)) - {first}
        self.why: str | None = None

    def reason(self, group: Group) -> str:
        """Why not every member has taken its output."""
        if self.why is not None:
            return self.why
        short = list(group.short_names())
        return f"{', '.join(short[place] for place in sorted(self.waiting))} not called with the same x"


def rejoin(layer: nn.Module) -> None:
    """Make a copied or unpickled layer a member of the copy of its group."""
    member: Membership | None = vars(layer).get(MEMBERSHIP)
    if member is not None:
        member.group.join(layer, member.place)
