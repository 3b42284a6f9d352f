"""Checks of arguments. Each error is one line: the argument's name, its value, and what would be right."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from numbers import Real
from typing import Final, cast

import torch

INITS: Final = ("gaussian", "kaiming", "orthogonal")
FROM_WEIGHT: Final = ("pissa", "pissa-randomized", "olora")
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Which biases of a model are trained beside LoRA: PEFT's `bias`.
BIASES: Final = (NO_BIASES := "none", "lora_only", ALL_BIASES := "all")


def shown(value: object, limit: int = 200) -> str:
    """The repr of what a caller passed, for a message; cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, say
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def listed(names: Iterable[str], most: int) -> str:
    """The names for a message: the first `most` of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


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


def check_rank(r: object, name: str = "r") -> int:
    """The rank, if it is an int >= 1; else TypeError or ValueError about `name`."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"{name} must be an int >= 1; got {shown(r)}")
    if r < 1:
        raise ValueError(f"{name} must be an int >= 1; got {shown(r)}")
    return r


def check_alpha(alpha: object, name: str = "alpha") -> float | None:
    """Alpha, if it is a finite number or None (meaning r); else TypeError or ValueError about `name`."""
    if alpha is None:
        return None
    wanted = f"{name} must be a finite number or None (meaning r); got {shown(alpha)}"
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(wanted)
    try:
        number = float(alpha)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(wanted)
    return number


def check_scaling(s: object) -> float:
    """The scaling s as a float, if it is a finite real number; else TypeError or ValueError."""
    if isinstance(s, torch.SymFloat):
        return cast(float, s)
    if isinstance(s, bool) or not isinstance(s, Real):
        raise TypeError(f"s must be a number; got {type(s).__name__}")
    try:
        number = float(s)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"s must be finite; got {shown(s)}")
    return number


def check_dropout(dropout: object) -> float:
    """The dropout probability, if it lies in [0, 1); else TypeError or ValueError."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise TypeError(f"dropout must be a probability in [0, 1); got {shown(dropout)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1); got {shown(dropout)}")
    return float(dropout)


def check_bool(value: object, name: str) -> bool:
    """The value, if it is True or False; else TypeError about `name`."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {shown(value)}")
    return value


def check_init(init: object) -> str:
    """The name of an initialization; else ValueError listing the known ones."""
    if not isinstance(init, str) or init not in INITS:
        from_weight = isinstance(init, str) and init in FROM_WEIGHT
        hint = " (it changes W: call fastlora.initialize after apply_lora)" if from_weight else ""
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {shown(init)}{hint}")
    return str(init)


def check_dtype(name: str, dtype: object) -> torch.dtype | None:
    """The dtype, if matrices can be multiplied in it, or None; else TypeError about `name`.

    Names are taken too, such as "float32" and "torch.float32".
    """
    if isinstance(dtype, str):
        found = {str(known): known for known in DTYPES}.get("torch." + dtype.removeprefix("torch."))
    else:
        found = next((known for known in DTYPES if dtype is known), None)
    if found is None and dtype is not None:
        raise TypeError(f"{name} must be {', '.join(map(str, DTYPES))} or None; got {shown(dtype)}")
    return found


def adapter_dtype_over(base: torch.dtype, chosen: torch.dtype | None = None) -> torch.dtype:
    """Dtype of A and B over a weight: the chosen one, else the weight's, but fp32 over a 16-bit weight.

    In 16 bits most of a small step's changes would be rounded away. PEFT chooses likewise
    (`autocast_adapter_dtype`).
    """
    return chosen or torch.promote_types(base, torch.float32)


def scaling(r: int, alpha: float, rslora: bool) -> float:
    """s = alpha / r (arXiv 2106.09685, section 4.1), or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(r) if rslora else r)
