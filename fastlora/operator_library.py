"""How an operator of `torch.ops.fastlora` is made.

By Library.define, whose call costs about half of a `custom_op`'s. All are made in this file: for each file
that registers a fake version, torch goes through every loaded module once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

_library: Final = torch.library.Library("fastlora", "DEF")


def make_operator(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    under_autocast: Callable[[str, Any], Callable[..., Any]] | None = None,
) -> Any:
    """An operator, as it is called: `torch.ops.fastlora.NAME.default`.

    Args:
        schema: Its name, arguments and results, as torch writes them.
        run: What it computes, on every device.
        fake: The same for tensors without values, whose shapes torch.compile and torch.export ask for.
        under_autocast: Gives what runs under autocast, from a kind of device ("cpu" or "cuda") and the
            operator; None means `run`.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlora::{name}", fake, lib=_library)
    operator = getattr(torch.ops.fastlora, name).default
    if under_autocast is not None:
        for kind in ("cpu", "cuda"):
            _library.impl(name, under_autocast(kind, operator), f"Autocast{kind.upper()}")
    return operator


def without_autocast(kind: str, operator: Any) -> Callable[..., Any]:
    """An operator with autocast off inside it, whose conversions would mix dtypes that must be equal.

    Args:
        kind: The device's, "cpu" or "cuda".
        operator: An operator. Whoever calls it has converted x, W and b.
    """

    def run(*operands: Any) -> Any:
        with torch.autocast(kind, enabled=False):
            return operator(*operands)

    return run
