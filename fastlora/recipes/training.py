"""Training and testing a small net in small batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastlora.recipes.digits import CLASSES

BATCH: Final = 10

# Rows in one forward pass while testing.
_TEST_ROWS: Final = 500

T = TypeVar("T")


class Track(Protocol):
    """Shows the progress of a phase, by passing on its items as rich's `track` does."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """Yield the `total` items, showing the phase's name `what` and its progress."""


class Examples(Protocol):
    """Examples to train or test a net on."""

    def rows(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs [n, K] and labels [n], ready for a net."""


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The `Track` that shows nothing."""
    return items


def constant(_: float) -> float:
    """The schedule of a constant learning rate."""
    return 1.0


def falling(done: float) -> float:
    """The schedule of a learning rate that falls linearly to 0; `done` is the share of steps done."""
    return 1.0 - done


def fit(
    net: nn.Module,
    parameters: Iterable[nn.Parameter],
    examples: Examples,
    *,
    batches: int,
    generator: torch.Generator,
    what: str,
    rate: float,
    batch: int = BATCH,
    schedule: Callable[[float], float] = constant,
    track: Track = untracked,
) -> list[float]:
    """Train by cross-entropy with Adam in small batches, going through the examples in shuffled passes.

    Args:
        net: Rows [M, K] -> logits, or their log-softmax, [M, classes].
        parameters: The parameters to train, on one device and in one dtype. The rows are converted to these.
        examples: The examples to train on.
        batches: The number of steps.
        generator: A CPU generator, which draws the order of the examples.
        what: The phase's name, for `track`.
        rate: Adam's learning rate.
        batch: Rows in a step; the last step of a pass may have fewer.
        schedule: Given the share of steps done, in [0, 1), a factor for the rate.
        track: Shows progress.

    Returns:
        The loss of each batch, before its step.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    parameters = list(parameters)
    x, labels = examples.rows(parameters[0].device, parameters[0].dtype)
    adam = torch.optim.Adam(parameters, lr=rate, fused=True)
    losses: list[Tensor] = []
    order = itertools.islice(_shuffled_batches(len(labels), batch, generator), batches)
    net.train()
    with _small_steps():
        for step, chosen in enumerate(track(order, what, batches)):
            rows = chosen.to(x.device)
            for group in adam.param_groups:
                group["lr"] = rate * schedule(step / batches)
            loss = nn.functional.cross_entropy(net(x[rows]), labels[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.detach())
    values: list[float] = torch.stack(losses).tolist()
    for step, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise FloatingPointError(f"{what}: the loss of batch {step} of {batches} is {value}")
    return values


def _shuffled_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices below `count`. Each pass is in a new order; its last batch may be smaller."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch)


@contextmanager
def _small_steps() -> Iterator[None]:
    """CPU settings for steps of a few milliseconds, for a `with` block.

    One thread, because at batch 10 a step is bound by memory: two threads on two busy cores were 10 times
    slower, as each waits for the other at every operation. Denormals are flushed to zero, because Adam's mean
    of a dead unit's gradient falls by a factor of 0.9 a step. After 800 steps it is denormal, and then costs
    5 times the whole step.
    """
    threads, flushed = torch.get_num_threads(), _denormals_are_zero()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)


def _denormals_are_zero() -> bool:
    """Whether this thread flushes denormals to zero. torch can set this but has no call to read it."""
    return not bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2)


@contextmanager
def weights_drawn_from(seed: int) -> Iterator[None]:
    """A `with` block in which layers made on a CPU draw weights from this seed; torch's generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Score(NamedTuple):
    """The result of a test of a net.

    Attributes:
        accuracy: The share of examples that it labels right.
        wrong: For each label, at least 0 to 9, how many examples it labels wrong.
    """

    accuracy: float
    wrong: list[int]


@torch.no_grad()
def score(net: nn.Module, examples: Examples, *, what: str = "", track: Track = untracked) -> Score:
    """Test a net; the examples are converted to the device and dtype of its first parameter."""
    like = next(net.parameters())
    x, labels = examples.rows(like.device, like.dtype)
    net.eval()
    chunks = torch.split(x, _TEST_ROWS)
    guesses = torch.cat([net(chunk).argmax(1) for chunk in track(chunks, what, len(chunks))])
    wrong = torch.bincount(labels[guesses != labels].cpu(), minlength=CLASSES)
    right = len(labels) - int(wrong.sum())
    return Score(accuracy=right / len(labels), wrong=wrong.tolist())
