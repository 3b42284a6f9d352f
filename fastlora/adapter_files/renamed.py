"""Maps module names from earlier releases of Transformers to present ones, by Transformers' own tables."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import nn

from fastlora.adapter_files.contents import Contents
from fastlora.model.wrappers import unwrapped

_Renaming = Callable[[str], str]


def fit_names(model: nn.Module, contents: Contents, known: Mapping[str, nn.Module]) -> None:
    """Give layers and modules to save the names that the model has for them, and say so, if all old ones fit.

    Where names fit already, or still do not, they stay, and whoever looks for them tells which is missing.

    Args:
        model: The model.
        contents: The adapter.
        known: The model's modules by name.
    """
    if all(name in known for name in contents.names):
        return
    old = (*contents.names, *contents.plain)
    for renaming in _renamings(unwrapped(model)):
        new = _renamed(renaming, contents.names, known)
        if new is None:
            continue
        names = {
            **dict(zip(contents.names, new, strict=True)),
            **{key: renaming(key) for key in contents.plain},
        }
        if len(set(names.values())) < len(old):
            continue
        first = next(name for name in contents.names if names[name] != name)
        warnings.warn(
            f"this adapter has names of an earlier release of Transformers; {first!r} and others are read by "
            f"its table, as {names[first]!r} (save it again to have today's names)",
            stacklevel=4,
        )
        contents.rename(names)
        return


def _renamed(renaming: _Renaming, names: Iterable[str], known: Mapping[str, nn.Module]) -> list[str] | None:
    """The new names, or None from the first on that the model does not have either."""
    found: list[str] = []
    for name in names:
        # Tables are made for keys of a state_dict, and some end on "weight".
        new = renaming(f"{name}.weight").removesuffix(".weight")
        if new not in known:
            return None
        found.append(new)
    return found


def _renamings(model: nn.Module) -> list[_Renaming]:
    """What the installed release may know of old names: 4.52 to 4.57 on the class, from 5 on in one table."""
    transformers = sys.modules.get("transformers")  # a model of it has imported it
    if transformers is None or not isinstance(model, getattr(transformers, "PreTrainedModel", ())):
        return []
    found: list[_Renaming] = []
    of_class = getattr(model, "_checkpoint_conversion_mapping", None)
    if of_class:
        found.append(lambda key: _by_class(of_class, key))
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return found
    steps: list[Any] = [
        step for step in get_model_conversion_mapping(cast(Any, model)) if isinstance(step, WeightRenaming)
    ]
    found.append(lambda key: _by_steps(steps, key))
    return found


def _by_class(mapping: Mapping[str, str], key: str) -> str:
    for pattern, replacement in mapping.items():
        key, times = re.subn(pattern, replacement, key)
        if times:
            break
    return key


def _by_steps(steps: Iterable[Any], key: str) -> str:
    for step in steps:
        key, _ = step.rename_source_key(key)
    return key
