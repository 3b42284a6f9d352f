"""Packages that a job needs and the package itself does not."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A package that the job needs is not installed."""


def check_extras(what: str, packages: Iterable[str], extra: str) -> None:
    """Raise MissingExtraError unless all packages are installed: before a job, not after its training.

    Args:
        what: What needs them, for the message.
        packages: Their import names.
        extra: The extra that brings them.
    """
    for name in packages:
        if find_spec(name) is None:
            raise MissingExtraError(f'{what} needs {name}: pip install "fastlora-triton[{extra}]"')
