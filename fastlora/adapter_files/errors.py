"""The error for adapters on disk."""

from typing import Final

_LONGEST: Final = 1_000


class AdapterError(ValueError):
    """An adapter on disk is damaged, foreign or not supported, or does not fit the model.

    Names in the message may come from a hostile file. So it is cut to some 1,000 characters, and control
    characters are escaped.
    """

    def __init__(self, message: str) -> None:
        message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        # The end is kept, because it says what to do.
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 305]} ... {message[-300:]}"
        super().__init__(message)
