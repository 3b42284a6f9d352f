"""The group of all commands. It reports an error by a short message, and an interrupt by one word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

INTERRUPTED = 130  # as a shell reports a process that SIGINT ended
_LONGEST = 1000


class Commands(click.Group):
    """A click group with short messages, which reports an interrupt as shells do."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click's, with short messages."""
        with _short():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, with short messages."""
        with _short():
            return super().invoke(ctx)


@contextmanager
def _short() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = shortened(error.message)  # type: ignore[misc]
        raise
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    # If memory runs out, torch raises RuntimeError on a CPU and a subclass of it on a GPU.
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        said = f": {' '.join(str(error).split())}" if str(error) else ""
        raise click.ClickException(shortened(f"not enough memory{said}", 300)) from error


def shortened(message: str, longest: int = _LONGEST) -> str:
    """The message; if it is too long, without its middle, because its end says what would be right."""
    if len(message) <= longest:
        return message
    half = (longest - 5) // 2
    return f"{message[:half]} ... {message[-half:]}"
