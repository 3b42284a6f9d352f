"""A class of ours over a class of another library: a subclass of both, whose state is the library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

_Ours = TypeVar("_Ours", bound=type)

_made: Final[dict[tuple[type, type], Any]] = {}


def class_over(
    ours: _Ours,
    library: type,
    blank: Callable[..., object],
    *given: object,
    prefix: str = "FusedLoRA",
    **about: Any,
) -> _Ours:
    """The subclass of both classes, the same in each call.

    No module holds it under its name, so its layers are copied and pickled as a call of `blank`.

    Args:
        ours: A class whose methods come before the library's. The new one has its module and docstring.
        library: The other class; the new one has it as `_library_class`.
        blank: A module's function, which makes an empty layer from `library` and `given`.
        given: What else `blank` takes.
        prefix: What the new class's name has before the library's.
        about: Further attributes of the new class.
    """
    if (ours, library) not in _made:

        def reduced(layer: Any, protocol: Any) -> tuple[Any, ...]:
            _, _, *rest = cast("tuple[Any, ...]", super(made, layer).__reduce_ex__(protocol))
            return blank, (library, *given), *rest

        made: Any = type(ours)(
            f"{prefix}{library.__name__}",
            (ours, library),
            {
                "__module__": ours.__module__,
                "__doc__": ours.__doc__,
                "__reduce_ex__": reduced,
                "_library_class": library,
                **about,
            },
        )
        _made[ours, library] = made
    return cast(_Ours, _made[ours, library])
