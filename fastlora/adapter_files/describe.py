"""Short name endings and patterns that describe an adapter's layers and ranks in PEFT's config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from torch import nn

from fastlora.model.wrappers import named_modules

_Value = TypeVar("_Value", int, float)


def target_modules(chosen: Collection[str], everything: Collection[str]) -> list[str] | str:
    """The shortest name endings that select these modules and no others, for PEFT's `target_modules`.

    Args:
        chosen: Names of the modules to select.
        everything: Names of all modules of the model.

    Returns:
        A sorted list of endings; a regular expression if a chosen name is itself the ending of another name.
    """
    others = set(everything) - set(chosen)
    taken = set(_endings(others))
    found: set[str] = set()
    for name in chosen:
        ending = next((ending for ending in endings(name) if ending not in taken), None)
        if ending is None:
            return "|".join(re.escape(name) for name in sorted(chosen))
        found.add(ending)
    return sorted(found)


def target_parameters(chosen: Collection[str], model: nn.Module) -> list[str]:
    """The shortest name endings that select these parameters and no others, for PEFT's `target_parameters`.

    Args:
        chosen: Names of the parameters to select.
        model: The model that has them.
    """
    everything = {
        f"{name}.{kind}".lstrip(".") for name, module in named_modules(model) for kind in module._parameters
    }
    found = target_modules(chosen, everything)
    return sorted(chosen) if isinstance(found, str) else found


def modules_to_save(chosen: Collection[str], everything: Collection[str]) -> list[str]:
    """The shortest name endings for PEFT's `modules_to_save`, where "head" also matches "lm_head".

    If a chosen name is the ending of another name, PEFT cannot tell the two apart; it is returned in full.

    Args:
        chosen: Names of the modules to select.
        everything: Names of all modules of the model.
    """
    return sorted(
        next(
            (e for e in endings(name) if not any(o.endswith(e) for o in everything if o not in chosen)), name
        )
        for name in chosen
    )


def trainable_token_indices(
    rows: Mapping[str, list[int]], everything: Collection[str]
) -> dict[str, list[int]] | None:
    """PEFT's key for rows of tokens, {the end of a module's name: tokens}; None if there are none.

    Args:
        rows: {name of a module: tokens}.
        everything: Names of all modules of the model.
    """
    return {modules_to_save([name], everything)[0]: tokens for name, tokens in rows.items()} or None


def pattern(values: Mapping[str, _Value]) -> tuple[_Value, dict[str, _Value]]:
    """The most common value, and a pattern for the other values, for `rank_pattern` and `alpha_pattern`.

    Args:
        values: {name: value}, not empty.

    Returns:
        The common value, and {regular expression for the end of a name: value}.
    """
    common = Counter(values.values()).most_common(1)[0][0]
    found: dict[str, _Value] = {}
    for name, value in values.items():
        if value == common:
            continue
        unlike = set(_endings(other for other, its in values.items() if its != value))
        ending = next((re.escape(ending) for ending in endings(name) if ending not in unlike), None)
        found[f"^{re.escape(name)}" if ending is None else ending] = value
    return common, found


def endings(name: str) -> Iterable[str]:
    """The endings of a dotted name, shortest first; the last one is the name itself."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in reversed(range(len(parts))))


def _endings(names: Iterable[str]) -> Iterable[str]:
    return (ending for name in names for ending in endings(name))
