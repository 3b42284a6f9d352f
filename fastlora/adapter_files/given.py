"""Takes adapters from a state_dict of gathered or averaged weights that is passed to `save_pretrained`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastlora.model.name_matching import listed


def is_other(state: Mapping[str, Tensor], model: nn.Module, places: Mapping[str, str]) -> bool:
    """Whether a passed state_dict has updates, and not exactly those of the model."""
    if not any("lora_" in key for key in state):
        return False
    own = model.state_dict()
    return not all(
        place in state
        and place in own
        and state[place].dtype == own[place].dtype
        and torch.equal(state[place].to(own[place].device), own[place])
        for place in places.values()
    )


def from_state(
    state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], places: Mapping[str, str]
) -> dict[str, Tensor]:
    """The values of an adapter's tensors, taken from a passed state_dict.

    Raises:
        ValueError: If the state_dict lacks a tensor, or has it in another shape.
    """
    missing = [place for place in places.values() if place not in state]
    if missing:
        raise ValueError(f"state_dict must hold every adapter; it lacks {listed(missing)}")
    for key, place in places.items():
        if state[place].shape != tensors[key].shape:
            raise ValueError(
                f"{place!r} must be {list(tensors[key].shape)} in state_dict (initialize was used?)"
            )
    return {key: state[place] for key, place in places.items()}
