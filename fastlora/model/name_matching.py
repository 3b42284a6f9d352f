"""Matches modules by name or regular expression, as PEFT does, and lists names in messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from fastlora import arguments
from fastlora.arguments import shown

_Number = TypeVar("_Number", int, float)
_Matcher = Callable[[str], bool]

# The most names, and letters of a name, that a message shows; a large model has thousands of names.
_SHOWN, _LONGEST = 8, 80


def matched_modules(argument: str, patterns: str | Iterable[str], names: Mapping[Any, list[str]]) -> set[Any]:
    """The modules that a regular expression or names match.

    Raises:
        TypeError: If one matches a parameter and no module.
        ValueError: If one matches nothing.
    """
    matchers: dict[str, _Matcher]
    if isinstance(patterns, str):
        regex = re.compile(patterns)
        matchers = {patterns: lambda name: regex.fullmatch(name) is not None}
        hint = " (a string is a regular expression for the whole name; a list matches the ends of names)"
    else:
        matchers = {entry: _matcher(entry) for entry in patterns}
        hint = ""
    found: set[Any] = set()
    for pattern, matches in matchers.items():
        here = {module for module, own in names.items() if any(map(matches, own))}
        if not here:
            parameter = _parameter_named(matches, names)
            if parameter is not None:
                raise TypeError(
                    f"{argument}: {shown(pattern)} must match a module; it is the parameter {parameter} "
                    "(target_parameters names experts)"
                )
            linears = [own for module, own in names.items() if isinstance(module, nn.Linear)]
            near = near_names(pattern, _flat(linears or names.values()))
            raise ValueError(f"{argument}: {shown(pattern)} must match a module; it matches none{hint}{near}")
        found |= here
    return found


def _matcher(entry: str) -> _Matcher:
    return lambda name: name == entry or name.endswith("." + entry)


def _parameter_named(matches: _Matcher, names: Mapping[nn.Module, list[str]]) -> str | None:
    """A phrase on the first parameter that matches: its name, its shape and its module."""
    for module, (prefix, *_) in names.items():
        for own, parameter in getattr(module, "_parameters", {}).items():
            if parameter is not None and matches(f"{prefix}.{own}".lstrip(".")):
                return f"{own!r} {list(parameter.shape)} of {prefix!r}, a {type(module).__name__}"
    return None


def numbers_by_pattern(
    argument: str,
    pattern: Mapping[str, _Number],
    chosen: Iterable[Any],
    names: Mapping[Any, list[str]],
) -> dict[Any, _Number]:
    """{module: number} by the first key of the pattern that matches the module, as PEFT chooses.

    Raises:
        ValueError: If a key matches none of the chosen modules.
    """
    numbers: dict[Any, _Number] = {}
    for key, number in pattern.items():
        regex = re.compile(key)
        here = [module for module in chosen if any(matches_end(regex, name) for name in names[module])]
        if not here:
            near = near_names(key, _flat(names[module] for module in chosen))
            raise ValueError(
                f"{argument}: {shown(key)} must match a layer that gets LoRA; it matches none{near}"
            )
        for module in here:
            numbers.setdefault(module, number)
    return numbers


def matches_end(regex: re.Pattern[str], name: str) -> bool:
    """Whether the name, or the part after one of its dots, matches; "^" matches only the name's start."""
    starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    return any(regex.fullmatch(name, start) for start in starts)


def near_names(pattern: str, names: Collection[str]) -> str:
    """A phrase with the names most similar to `pattern`, or with all names if none is."""
    literal = re.sub(r"[^\w.]|\.(?=[*+?])", "", pattern).strip(".")
    depth = literal.count(".") + 1
    endings = dict.fromkeys(".".join(name.split(".")[-depth:]) for name in names if name)
    near = difflib.get_close_matches(literal, [*endings, *names], n=3)
    if near:
        return f"; near names: {listed(dict.fromkeys(near))}"
    return f"; there are: {listed(endings)}" if endings else ""


def listed(names: Iterable[str]) -> str:
    """The names for a message, shortened if there are many."""
    return arguments.listed((shown(name, _LONGEST) for name in names), _SHOWN)


def _flat(groups: Iterable[list[str]]) -> list[str]:
    return [name for group in groups for name in group]
