"""Names of modules as they are in files: what only wraps a module is no part of its name."""

from __future__ import annotations

from typing import Final

from torch import nn

from fastlora.targets import module_names

# torch.compile, activation checkpointing, FSDP.
_WRAPPERS: Final = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def path_in_files(name: str) -> str:
    """A dotted name without the wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a model, the innermost one where wrappers leave several with one name."""
    return {path_in_files(name): module for module, own in module_names(model).items() for name in own}
