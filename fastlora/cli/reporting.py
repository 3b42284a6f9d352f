"""How a command's errors end: in one line, a wrong option with status 2, all else with status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

Errors = tuple[type[Exception], ...]


@contextmanager
def reported(
    *, wrong: Errors = (TypeError, ValueError), failed: Errors = (ImportError, OSError)
) -> Iterator[None]:
    """Raise a `with` block's errors as click's; those that are neither keep their traceback.

    Args:
        wrong: Those that say that an option is wrong.
        failed: Those that have a reason outside the program; where an error is both, this holds.
    """
    try:
        yield
    except failed as error:
        raise click.ClickException(str(error)) from error
    except wrong as error:
        raise click.UsageError(str(error)) from error
