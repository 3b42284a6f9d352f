"""Names of modules matched by names and regular expressions, as PEFT matches them, and listed in messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from torch import nn

from fastlora.arguments import shown

_Number = TypeVar("_Number", int, float)
_Matcher = Callable[[str], bool]

# Enough of a list of names for a message; a large model has thousands.
_SHOWN, _LONGEST = 8, 80


def matched_modules(
    argument: str, patterns: str | Iterable[str], names: Mapping[nn.Module, list[str]]
) -> set[nn.Module]:
    """The modules that a regular expression or names match; ValueError where one matches nothing."""
    matchers: dict[str, _Matcher]
    if isinstance(patterns, str):
        regex = re.compile(patterns)
        matchers = {patterns: lambda name: regex.fullmatch(name) is not None}
        hint = " (a string is a regular expression for the whole name; a list matches the ends of names)"
    else:
        matchers = {entry: _matcher(entry) for entry in patterns}
        hint = ""
    found: set[nn.Module] = set()
    for pattern, matches in matchers.items():
        here = {module for module, own in names.items() if any(map(matches, own))}
        if not here:
            parameter = _parameter_named(matches, names)
            if parameter is not None:
                raise TypeError(
                    f"{argument}: {shown(pattern)} must match a module; it is the parameter {parameter}"
                )
            linears = [own for module, own in names.items() if isinstance(module, nn.Linear)]
            near = near_names(pattern, _flat(linears or names.values()))
            raise ValueError(f"{argument}: {shown(pattern)} must match a module; it matches none{hint}{near}")
        found |= here
    return found


def _matcher(entry: str) -> _Matcher:
    return lambda name: name == entry or name.endswith("." + entry)


def _parameter_named(matches: _Matcher, names: Mapping[nn.Module, list[str]]) -> str | None:
    """The first parameter that is matched, with its shape and what module it belongs to."""
    for module, (prefix, *_) in names.items():
        for own, parameter in module._parameters.items():
            if parameter is not None and matches(f"{prefix}.{own}".lstrip(".")):
                return f"{own!r} {list(parameter.shape)} of {prefix!r}, a {type(module).__name__}"
    return None


def numbers_by_pattern(
    argument: str,
    pattern: Mapping[str, _Number],
    chosen: Iterable[nn.Module],
    names: Mapping[nn.Module, list[str]],
) -> dict[nn.Module, _Number]:
    """The number of each module that a key matches, by the first such key, as PEFT chooses."""
    numbers: dict[nn.Module, _Number] = {}
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
    """Whether the name, or what follows one of its dots, matches; "^" stands for the name's own start."""
    starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    return any(regex.fullmatch(name, start) for start in starts)


def near_names(pattern: str, names: Collection[str]) -> str:
    """A phrase with the names that look most like `pattern`, or else with what there is."""
    literal = re.sub(r"[^\w.]|\.(?=[*+?])", "", pattern).strip(".")
    depth = literal.count(".") + 1
    endings = dict.fromkeys(".".join(name.split(".")[-depth:]) for name in names if name)
    near = difflib.get_close_matches(literal, [*endings, *names], n=3)
    if near:
        return f"; near names: {listed(dict.fromkeys(near))}"
    return f"; there are: {listed(endings)}" if endings else ""


def listed(names: Iterable[str]) -> str:
    """The names for a message, cut where there are many."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(shown(name, _LONGEST) for name in every[:_SHOWN]) + more


def _flat(groups: Iterable[list[str]]) -> list[str]:
    return [name for group in groups for name in group]
