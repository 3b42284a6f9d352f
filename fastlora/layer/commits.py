"""Atomic changes to a model: one at a time, completely or not at all, even if interrupted.

An operation first computes everything it needs, without changing the model; Ctrl-C is harmless there. Then
one `commit` makes the changes. During a commit,

  - signals wait: a Python handler (for Ctrl-C, a timer) runs after the commit, not in its middle;
  - if a change fails, those before it are undone, the last one first;
  - `moved` is odd, which tells a forward pass in another thread that it may have read a mix of two states.

Functions marked `exclusive` change models. Only one thread at a time runs any of them, checks included.
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

# Counts the beginnings and ends of commits in this process.
moved = 0

# A `with` block that holds a lock is written on one line. Under a trace function (a debugger's, a test's),
# signals are handled at the start of each line, and Python visits a block's first line again when it leaves
# the block. A handler that raised there would leave the lock held for ever.
_operations = threading.RLock()
_commits = threading.RLock()
_current: Commit | None = None
# Without the real-time signals: asking for their handlers too would take twice the time.
_SIGNALS = sorted(number for number in signal.valid_signals() if number < 32)


def exclusive(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Mark a function: one thread at a time runs any marked function. A marked one may call another."""

    @wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _operations: return function(*args, **kwargs)  # fmt: skip  # noqa: E701 - see _commits

    return alone


def undisturbed(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result of a computation during which no other thread's commit runs."""
    with _commits: return compute(x)  # fmt: skip  # noqa: E701 - see _commits


class Commit:
    """Small changes, each undone if a later one fails."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._kept: dict[int, dict[Any, Any]] = {}
        self._finish: list[Callable[[], object]] = []
        self.ended = False

    def keep(self, mapping: dict[Any, Any]) -> None:
        """Remember a dict, its order included, to restore it if the commit fails."""
        if id(mapping) not in self._kept:
            self._kept[id(mapping)] = before = dict(mapping)
            self._undo.append(lambda: _restore(mapping, before))

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Set an entry of a dict: an attribute in `vars(module)`, a module in `_modules`, and the like."""
        self.keep(mapping)
        mapping[key] = value

    def drop(self, mapping: dict[Any, Any], key: Any) -> None:
        """Remove an entry of a dict, if there is one."""
        self.keep(mapping)
        mapping.pop(key, None)

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute that `vars` does not hold: a tensor's requires_grad, an object's __class__."""
        before = getattr(owner, name)
        if before is not value:
            self._undo.append(lambda: setattr(owner, name, before))
            setattr(owner, name, value)

    def freeze(self, tensor: Tensor) -> None:
        """Turn requires_grad off and drop the gradient, which an optimizer would still use."""
        self.assign(tensor, "requires_grad", False)
        self.assign(tensor, "grad", None)

    def write(self, tensor: Tensor, values: Tensor, before: Tensor | None = None) -> None:
        """Copy values into a tensor.

        Args:
            tensor: The tensor to write to, checked by `check_writable`.
            values: The new values, in the same shape.
            before: A copy of the old values, for undoing; None makes one here.
        """
        old = tensor.detach().clone() if before is None else before
        self._undo.append(lambda: _write(tensor, old))
        _write(tensor, values)

    def then(self, step: Callable[[], object]) -> None:
        """Add a step to run after all other changes. Once these steps begin, nothing is undone any more.

        For changes that could be undone only with another copy of every W. All steps run, even if one fails.
        A step that fails is tried once more, so it must be right to repeat a step that was half done.
        """
        self._finish.append(step)

    def _end(self) -> None:
        self.ended = True
        _all_of(self._finish, tries=2)

    def _revert(self) -> None:
        _all_of(reversed(self._undo), tries=2)


@contextmanager
def commit() -> Iterator[Commit]:
    """A `with` block whose changes all take effect, or none do; within another commit, it joins that one."""
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
    """Delay Python's signal handlers, which only the main thread runs, to the end of a `with` block."""

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
        except BaseException:  # raised by a handler that was not delayed yet
            self.__exit__()
            raise

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came[number] = None

    def __exit__(self, *_: object) -> None:
        # A handler that is restored may run and raise at once; the others must be restored all the same.
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
    """Run every step, even if others fail, each at most `tries` times; then raise the first error.

    A finished step may run again, because an interrupt may come before it is noted as done.
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
    """Make new locks in a forked child: the thread that held an old one does not exist there."""
    global _operations, _commits, _current, moved
    _operations, _commits, _current = threading.RLock(), threading.RLock(), None
    moved += moved % 2


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
