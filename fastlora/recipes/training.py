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
    """What is told of each phase's progress: it passes on the items of a phase, as rich's `track` does."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """Yield `items`, `total` of them, showing `what` and how far it is."""


class Examples(Protocol):
    """What a net is trained on."""

    def rows(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs [n, K] and labels [n], ready for a net."""


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The `Track` that shows nothing."""
    return items


def constant(_: float) -> float:
    """The schedule of a learning rate that stays."""
    return 1.0


def falling(done: float) -> float:
    """The schedule of a learning rate that falls linearly to 0; `done` is the share of training behind."""
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
        parameters: Those that Adam moves, on one device and in one dtype, which the rows are converted to.
        examples: What to train on.
        batches: How many steps.
        generator: Of the order of the examples; a CPU generator.
        what: The phase's name, for `track`.
        rate: Adam's learning rate.
        batch: Rows in a step; the last of a pass may have fewer.
        schedule: Factor of the rate, given the share of training behind, from 0 up to 1.
        track: Where progress is shown.

    Returns:
        The loss of each batch, before its step.

    Raises:
        FloatingPointError: If the loss stops being finite.
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
    """Indices [<= batch] below `count`, pass after pass, each in a new order; a pass's last may be short."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch)


@contextmanager
def _small_steps() -> Iterator[None]:
    """CPU settings for steps of a few milliseconds; put back afterwards.

    One thread: at batch 10 a step is bound by memory, and two threads on two busy cores were 10 times slower
    than one (each waits for the other at every op). Denormals to zero: Adam's mean of a dead unit's gradient
    falls by 0.9 a step, is denormal after 800, and then costs 5 times the whole step.
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
    """Whether this thread flushes denormals, which torch can set but not tell."""
    return not bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2)


@contextmanager
def weights_drawn_from(seed: int) -> Iterator[None]:
    """Layers made on a CPU in this `with` block begin at the seed's weights; torch's generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Score(NamedTuple):
    """How a net did on test examples.

    Attributes:
        accuracy: Share that it got right.
        wrong: How many of each label, 0 to 9 at least, it got wrong.
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
