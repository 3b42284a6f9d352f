"""rank_pattern and alpha_pattern of an untrusted file: the first key that matches gives a layer's number.

In practice nearly all keys are plain names. There can be thousands, so they are looked up in a dict. The few
others are regular expressions, and the steps that all of them take together are limited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from fastlora.adapter_files.expressions import LONGEST, Expression, Work

_Number = TypeVar("_Number", int, float)

# A name. Its dots may be escaped; an unescaped dot stands for any letter.
_NAME: Final = re.compile(r"\^?(?:[\w.-]|\\[^a-zA-Z0-9])+")
_MOST_EXPRESSIONS: Final = 256
# A step takes some 0.1 us; in all, half a second for the layers of a small model.
_STEPS: Final = 2_000_000
# More steps for each layer, so that a large model may use the same patterns as a small one.
_STEPS_A_LAYER: Final = 5_000


class _Shape(NamedTuple):
    """The shape of a key: whether it begins with "^", and where it has dots that stand for any letter."""

    whole: bool
    wild: tuple[int, ...]


class Patterns(Generic[_Number]):
    """{key: number}. As in PEFT, the first key that matches a layer's name, or the end of it, counts.

    Raises:
        ValueError: If a key cannot be matched in a bounded time, or there are too many keys.
    """

    def __init__(self, argument: str, numbers: Mapping[str, _Number]) -> None:
        self._argument = argument
        self._numbers: list[_Number] = list(numbers.values())
        # {length: {shape: {letters: index}}}
        self._names: dict[int, dict[_Shape, dict[str, int]]] = {}
        self._expressions: list[tuple[int, Expression]] = []
        self._work = Work(_STEPS)
        for index, key in enumerate(numbers):
            if len(key) <= LONGEST and _NAME.fullmatch(key):
                shape, letters = _split(key)
                shapes = self._names.setdefault(len(letters), {})
                shapes.setdefault(shape, {}).setdefault(letters, index)
                continue
            if len(self._expressions) == _MOST_EXPRESSIONS:
                raise ValueError(
                    f"{argument} must have at most {_MOST_EXPRESSIONS} keys that are no names; got more, "
                    f"{key[:80]!r}"
                )
            try:
                self._expressions.append((index, Expression(key, self._work)))
            except ValueError as error:
                raise ValueError(
                    f"{argument} must have regular expressions as keys, without what looks back or ahead; "
                    f"{key[:80]!r} {error}"
                ) from error

    def find(self, layer: str, otherwise: _Number) -> _Number:
        """The number of a layer; `otherwise` if no key matches.

        Raises:
            ValueError: If the layers so far have taken too long together.
        """
        try:
            self._work.left += _STEPS_A_LAYER
            first = self._by_name(layer)
            for index, expression in self._expressions:
                if first is not None and index > first:
                    break
                if expression.matches(layer):
                    first = index
                    break
        except ValueError as error:
            raise ValueError(f"the keys of {self._argument} {error}") from error
        return otherwise if first is None else self._numbers[first]

    def _by_name(self, layer: str) -> int | None:
        found: list[int] = []
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", layer))):
            end = layer[start:]
            for shape, keys in self._names.get(len(end), {}).items():
                if shape.whole and start:
                    continue
                self._work.take(1 + len(shape.wild))
                index = keys.get(_masked(end, shape.wild))
                if index is not None:
                    found.append(index)
        return min(found, default=None)


def _split(key: str) -> tuple[_Shape, str]:
    """A key's shape, and its letters without escapes."""
    whole, key = key.startswith("^"), key.removeprefix("^")
    wild: list[int] = []
    escapes = 0
    for found in re.finditer(r"\\.|\.", key):
        if found[0] == ".":
            wild.append(found.start() - escapes)
        else:
            escapes += 1
    return _Shape(whole, tuple(wild)), re.sub(r"\\(.)", r"\1", key)


def _masked(letters: str, wild: tuple[int, ...]) -> str:
    found = list(letters)
    for place in wild:
        found[place] = "."
    return "".join(found)
