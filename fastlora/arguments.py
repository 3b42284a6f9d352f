"""What callers pass, checked: one line that names the argument, what it was and what would be right."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable

from fastlora.config import shown


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """The value, if it is one of the strings; else ValueError about `name`."""
    known = tuple(choices)
    # A numpy array compares entry by entry, so only a string is looked for.
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {shown(value)}")
    return value


def check_path(name: str, value: object) -> str:
    """The path as a string, if it can be one of this system; else TypeError or ValueError about `name`."""
    wanted = f"{name} must be a path: a string that is not empty, or a pathlib.Path; got {shown(value)}"
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(wanted)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(wanted) from error
    if not encoded or b"\0" in encoded:
        raise ValueError(wanted)
    return text


def check_text(name: str, value: object) -> str | None:
    """The value, if it is a string or None; else TypeError about `name`."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a string or None; got {shown(value)}")
    return value


def check_size(name: str, value: object, least: int = 0) -> int:
    """The size as an int, if it is a whole number of at least `least`; else TypeError or ValueError."""
    wanted = f"{name} must be an int >= {least}; got {shown(value)}"
    if isinstance(value, bool):
        raise TypeError(wanted)
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(wanted) from error
    if size < least:
        raise ValueError(wanted)
    return size
