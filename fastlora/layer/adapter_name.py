"""What an adapter may be called."""

from __future__ import annotations

import re

from torch import nn

from fastlora import arguments

_LONGEST_NAME = 100  # the name is also a directory's, for which file systems allow 255


def check_name(name: object) -> str:
    """The name, if it can be part of a state_dict key and name a directory; else TypeError or ValueError."""
    wanted = (
        f"adapter name must be letters, digits, '_' and '-', at most {_LONGEST_NAME}, not starting with '-'; "
        f"got {arguments.shown(name)}"
    )
    if not isinstance(name, str):
        raise TypeError(wanted)
    if len(name) > _LONGEST_NAME or re.fullmatch(r"\w[\w-]*", name, re.ASCII) is None:
        raise ValueError(wanted)
    if hasattr(nn.ModuleDict, name) or name == "training":
        raise ValueError(f"adapter name must not be an attribute of nn.ModuleDict; got {name!r}")
    return name
