"""Launches in Triton's interpreter with their programs as threads, in an order that a seed draws.

One thread runs at a time. Before each access to memory it may hand over to another. So programs wait, arrive
and publish in many orders, where the interpreter by itself runs one after the other. All see an access at
once: what only a weaker order of memory shows is found in tests/ptx, not here.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from triton.runtime import interpreter

_BUILDER = interpreter.interpreter_builder
_ACCESSES = (
    "create_load",
    "create_store",
    "create_masked_load",
    "create_masked_store",
    "create_atomic_rmw",
    "create_descriptor_load",
    "create_descriptor_store",
)
# Far more than a launch of these tests needs: a program that spins for ever is an error.
_MOST_ACCESSES = 300_000


class _Programs:
    """The threads of one launch; `turn` has those that may run."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.turn = [threading.Semaphore(0) for _ in range(count)]
        self.alive = list(range(count))
        self.speed = [self._any_speed() for _ in range(count)]
        self.mine = threading.local()
        self.over = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.accesses = 0

    def _any_speed(self) -> float:
        """Some are much faster than others, or all would be at about the same place."""
        return 10 ** (4 * self.random.random())

    def run(self, program: Callable[[], object]) -> None:
        threads = [threading.Thread(target=self._run, args=(i, program)) for i in range(len(self.turn))]
        for thread in threads:
            thread.start()
        self._hand_over()
        self.over.acquire()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _run(self, index: int, program: Callable[[], object]) -> None:
        self.mine.index = index
        self._wait()
        try:
            if self.error is None:
                program()
        except BaseException as error:
            self.error = self.error or error
        self.alive.remove(index)
        if self.alive:
            self._hand_over()
        else:
            self.over.release()

    def _hand_over(self) -> None:
        self.turn[self.random.choices(self.alive, [self.speed[i] for i in self.alive])[0]].release()

    def _wait(self) -> None:
        index = self.mine.index
        self.turn[index].acquire()
        _BUILDER.grid_idx = (index, 0, 0)

    def may_switch(self) -> None:
        """What a thread calls before an access."""
        self.accesses += 1
        if self.error is not None or self.accesses > _MOST_ACCESSES:
            raise RuntimeError("another program has failed, or the launch does not end")
        # Or those that draw the first tickets would stay the fastest, and nobody would overtake them.
        if self.random.random() < 1 / 8:
            self.speed[self.random.choice(self.alive)] = self._any_speed()
        self._hand_over()
        self._wait()


@contextlib.contextmanager
def interleaved(seed: int) -> Iterator[None]:
    """Inside, launches run so."""
    running: list[_Programs] = []

    class Grid(interpreter.GridExecutor):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            """As the one that it replaces, up to how the programs run."""
            kwargs = {name: value for name, value in kwargs.items() if name in self.arg_names}
            args_here, kwargs_here = self._init_args_hst(args, kwargs)
            patched = interpreter._patch_lang(self.fn)
            try:
                called = inspect.getcallargs(self.fn, *args_here, **kwargs_here)
                for name in set(called) - set(self.constexprs):
                    called[name] = interpreter._implicit_cvt(called[name])
                _BUILDER.set_grid_dim(*self.grid, 1, 1)
                running.append(_Programs(self.grid[0], seed))
                running[-1].run(lambda: self.fn(**called))
            finally:
                running.clear()
                patched.restore()
            self._restore_args_dev(args, args_here, kwargs, kwargs_here)

    def switching(access: Callable[..., Any]) -> Callable[..., Any]:
        def accessed(*args: Any, **kwargs: Any) -> Any:
            if running:
                running[-1].may_switch()
            return access(*args, **kwargs)

        return accessed

    kind = type(_BUILDER)
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(interpreter, "GridExecutor", Grid))
        for name in _ACCESSES:
            patches.enter_context(mock.patch.object(kind, name, switching(getattr(kind, name))))
        yield
