"""Reports a command's errors in one line. A wrong option exits with status 2, any other error with 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

Errors = tuple[type[Exception], ...]


@contextmanager
def reported(
    *, wrong: Errors = (TypeError, ValueError), failed: Errors = (ImportError, OSError)
) -> Iterator[None]:
    """Raise a `with` block's errors as click's errors; any other error keeps its traceback.

    Args:
        wrong: Errors that mean that an option is wrong.
        failed: Errors with a reason outside the program. An error of both kinds counts as one of these.
    """
    try:
        yield
    except failed as error:
        raise click.ClickException(str(error)) from error
    except wrong as error:
        raise click.UsageError(str(error)) from error
