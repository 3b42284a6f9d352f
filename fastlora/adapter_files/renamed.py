"""Converts module names of earlier Transformers releases to present ones, by Transformers' own tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import nn

from fastlora.adapter_files.contents import Contents
from fastlora.model.wrappers import unwrapped
from fastlora.warning import warn

_Renaming = Callable[[str], str]


def fit_names(model: nn.Module, contents: Contents, known: Mapping[str, nn.Module]) -> None:
    """If an adapter has an earlier release's names, rename its layers and modules to save, with a warning.

    If the names fit already, or would not all fit after renaming, they stay. A later check reports those that
    the model does not have.

    Args:
        model: The model.
        contents: The adapter.
        known: The model's modules by name.
    """
    if all(name in known for name in contents.names):
        return
    old = (*contents.names, *contents.beside)
    for renaming in _renamings(unwrapped(model)):
        new = _renamed(renaming, contents.names, known)
        if new is None:
            continue
        names = {
            **dict(zip(contents.names, new, strict=True)),
            **{key: renaming(key) for key in contents.beside},
        }
        if len(set(names.values())) < len(old):
            continue
        first = next(name for name in contents.names if names[name] != name)
        warn(
            f"this adapter has names of an earlier release of Transformers; {first!r} and others are read by "
            f"its table, as {names[first]!r} (save it again to have today's names)",
        )
        contents.rename(names)
        return


def _renamed(renaming: _Renaming, names: Iterable[str], known: Mapping[str, nn.Module]) -> list[str] | None:
    """The new names; None if the model lacks one of them."""
    found: list[str] = []
    for name in names:
        # The tables are made for keys of a state_dict, and some patterns end in "weight".
        new = renaming(f"{name}.weight").removesuffix(".weight")
        if new not in known:
            return None
        found.append(new)
    return found


def _renamings(model: nn.Module) -> list[_Renaming]:
    """The renamings that Transformers has for a model: 4.52 to 4.57 by class, 5 and later in one table."""
    transformers = sys.modules.get("transformers")  # if the model is from Transformers, it has been imported
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
