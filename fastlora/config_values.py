"""Values of LoRAConfig's fields that are names, patterns, indices, tokens or a task: checked, and copied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from fastlora.arguments import shown

TASKS: Final = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")


def check_indices(value: object) -> tuple[int, ...] | None:
    """layers_to_transform as a tuple, or None; else ValueError."""
    if value is None:
        return None
    found = (value,) if isinstance(value, int) else value
    if isinstance(found, (Sequence, AbstractSet)) and found and not isinstance(found, (str, bytes)):
        indices = tuple(found)
        if all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in indices):
            return indices
    raise ValueError(f"layers_to_transform must be an int >= 0 or a sequence of such; got {shown(value)}")


def check_tokens(value: object) -> dict[str, tuple[int, ...]] | tuple[int, ...]:
    """trainable_token_indices as a dict of tuples or a tuple; else TypeError or ValueError."""
    if isinstance(value, Mapping):
        if not value or not all(isinstance(name, str) and name for name in value):
            raise ValueError(f"trainable_token_indices must map names to tokens; got {shown(value)}")
        return {name: _tokens(tokens) for name, tokens in value.items()}
    return _tokens(value)


def _tokens(value: object) -> tuple[int, ...]:
    wanted = f"trainable_token_indices must be different ints >= 0, at least one; got {shown(value)}"
    if not isinstance(value, (Sequence, AbstractSet)) or isinstance(value, (str, bytes)):
        raise TypeError(wanted)
    tokens = tuple(sorted(value)) if isinstance(value, AbstractSet) else tuple(value)
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in tokens):
        raise TypeError(wanted)
    if not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise ValueError(wanted)
    return tokens


def check_task_name(value: object) -> str:
    """PEFT's name of a task, as a plain string; else ValueError listing the known ones."""
    if not isinstance(value, str) or value not in TASKS:
        raise ValueError(f"task_type must be one of {', '.join(TASKS)} or None; got {shown(value)}")
    return next(task for task in TASKS if task == value)  # PEFT's enumeration compares equal


def check_names(argument: str, value: object) -> str | tuple[str, ...]:
    """A regular expression, or names as a tuple; else TypeError or ValueError about `argument`."""
    if isinstance(value, str):
        check_regex(argument, value)
        return value
    if not isinstance(value, (Sequence, AbstractSet)) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{argument} must be a regular expression or a sequence of names; got {shown(value)}")
    names = tuple(sorted(value)) if isinstance(value, AbstractSet) else tuple(value)
    if not names or "" in names:
        raise ValueError(f"{argument} must hold at least one name and no empty one; got {shown(value)}")
    return names


def check_several_names(argument: str, value: object) -> str | tuple[str, ...]:
    """As `check_names`, but no regular expression."""
    if isinstance(value, str):
        raise TypeError(f"{argument} must be a sequence of names; got {shown(value)}")
    return check_names(argument, value)


def check_pattern(argument: str, value: object) -> dict[str, object]:
    """A dict by names or patterns, whose values the caller checks; else TypeError or ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{argument} must map names or regular expressions to numbers; got {shown(value)}")
    for key in value:
        check_regex(f"{argument} key", key)
    return dict(value)


def check_regex(argument: str, pattern: str) -> None:
    """Raise ValueError unless a string is a regular expression, and not empty."""
    if not pattern:
        raise ValueError(f"{argument} must not be empty")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} must be a regular expression; got {shown(pattern)}: {error}") from error
