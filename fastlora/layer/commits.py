"""How the state of a model changes: one change at a time, wholly or not at all, whatever interrupts it.

What a change needs is computed first; nothing of the model is different yet, and Ctrl-C may come at any time.
Then one `commit` puts it in place. While that works,

  - signals wait: a Python handler (Ctrl-C's, a timer's) runs after the commit, not in its middle;
  - what fails nevertheless is undone, backwards;
  - `moved` is odd, so that a forward pass in another thread sees that what it read may belong to two states.

`exclusive` lets one thread at a time through everything that changes a model, what it decides by included.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_T = TypeVar("_T")

# How often a commit began or ended in this process.
moved = 0

# Blocks that hold a lock stand on one line: where a trace function is at work (a debugger's, a test's),
# signals are handled at the start of each line, and on the way out of a block its first line comes once more,
# when nothing would give the lock back.
_operations = threading.RLock()
_commits = threading.RLock()
_current: Commit | None = None
# Signals that programs handle; asking for the real-time ones' handlers too would take twice the time.
_SIGNALS = sorted(number for number in signal.valid_signals() if number < 32)


def exclusive(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let one thread at a time into all functions so marked; the same thread may call one from another."""

    @wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _operations: return function(*args, **kwargs)  # fmt: skip  # noqa: E701 - see _commits

    return alone


def undisturbed(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result of a computation beside which no commit is at work."""
    with _commits: return compute(x)  # fmt: skip  # noqa: E701 - see _commits


class Commit:
    """Small changes, each undone if a later one fails."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._kept: dict[int, dict[Any, Any]] = {}
        self._finish: list[Callable[[], object]] = []
        self.ended = False

    def keep(self, mapping: dict[Any, Any]) -> None:
        """Have a dict as it is now again, its order included, if this fails."""
        if id(mapping) not in self._kept:
            self._kept[id(mapping)] = before = dict(mapping)
            self._undo.append(lambda: _restore(mapping, before))

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a dict: an attribute in `vars(module)`, a module in `_modules`, and the like."""
        self.keep(mapping)
        mapping[key] = value

    def drop(self, mapping: dict[Any, Any], key: Any) -> None:
        """Take an entry out of a dict, if it is there."""
        self.keep(mapping)
        mapping.pop(key, None)

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Set what is an attribute by its class: a tensor's requires_grad, an object's __class__."""
        before = getattr(owner, name)
        if before is not value:
            self._undo.append(lambda: setattr(owner, name, before))
            setattr(owner, name, value)

    def freeze(self, tensor: Tensor) -> None:
        """No gradient from now on, and none left over: an optimizer would still step on an old one."""
        self.assign(tensor, "requires_grad", False)
        self.assign(tensor, "grad", None)

    def write(self, tensor: Tensor, values: Tensor, before: Tensor | None = None) -> None:
        """Copy values into a tensor.

        Args:
            tensor: What is written to, checked by `check_writable`.
            values: In its shape.
            before: A copy of what it holds; made here where there is none yet.
        """
        old = tensor.detach().clone() if before is None else before
        self._undo.append(lambda: _write(tensor, old))
        _write(tensor, values)

    def then(self, step: Callable[[], object]) -> None:
        """Do this when all else is done; from then on nothing is undone, but the rest of the steps is done.

        For what could be undone only with one more copy of every W. A step that fails is tried once more, so
        doing it again after a part of it must be right.
        """
        self._finish.append(step)

    def _end(self) -> None:
        self.ended = True
        _all_of(self._finish, tries=2)

    def _revert(self) -> None:
        _all_of(reversed(self._undo), tries=2)


@contextmanager
def commit() -> Iterator[Commit]:
    """Make changes that are all there afterwards, or none; within another commit, a part of that one."""
    with _commits: yield from _committed()  # fmt: skip  # noqa: E701 - see _commits


def _committed() -> Iterator[Commit]:
    global moved, _current
    if _current is not None:
        yield _current
        return
    with _SignalsHeld():
        moved += 1
        changes = _current = Commit()
        try:
            yield changes
            changes._end()
        except BaseException:
            if not changes.ended:
                changes._revert()
            raise
        finally:
            _current = None
            moved += 1


class _SignalsHeld:
    """Keep Python's signal handlers, which only the main thread runs, waiting until the end of a block."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._came: dict[int, None] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        except BaseException:  # by a handler that was not held yet
            self.__exit__()
            raise

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came[number] = None

    def __exit__(self, *_: object) -> None:
        # Handlers that are back may raise among the rest, and all must come back.
        back = [partial(self._give_back, number) for number in self._handlers]
        _all_of([*back, self._deliver], tries=len(back) + 1)

    def _give_back(self, number: int) -> None:
        if (handler := self._handlers.get(number)) is not None:
            signal.signal(number, handler)
            del self._handlers[number]

    def _deliver(self) -> None:
        while self._came:
            number = next(iter(self._came))
            del self._came[number]
            signal.raise_signal(number)


def _all_of(steps: Iterable[Callable[[], object]], tries: int) -> None:
    """Do every step, again where it failed, whatever others raise; then raise what was raised first.

    A step that was done may be done again, as an interrupt may come before that is noted.
    """
    left = list(steps)[::-1]
    failed, error = 0, None
    while left:
        try:
            while left:
                left[-1]()
                left.pop()
                failed = 0
        except BaseException as raised:
            error, failed = error or raised, failed + 1
            if failed == tries:
                left.pop()
                failed = 0
    if error is not None:
        raise error


def _restore(mapping: dict[Any, Any], before: dict[Any, Any]) -> None:
    for key in [key for key in mapping if key not in before]:
        del mapping[key]
    mapping.update(before)
    if list(mapping) != list(before):
        mapping.clear()
        mapping.update(before)


@torch.no_grad()
def _write(tensor: Tensor, values: Tensor) -> None:
    tensor.copy_(values)


def _renew() -> None:
    """In a forked child no other thread lives on that would give a lock back."""
    global _operations, _commits, _current, moved
    _operations, _commits, _current = threading.RLock(), threading.RLock(), None
    moved += moved % 2


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
