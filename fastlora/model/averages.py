"""Averages of weights by torch's AveragedModel (SWA, EMA): refused where they would mix what does not belong.

It averages the parameters of two models by their place. A switch moves the versions of modules to save, and a
merge puts W + s B A in W's place.
"""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastlora.layer.replaced_layers import observers
from fastlora.model.find_layers import lora_layers
from fastlora.model.name_matching import listed
from fastlora.model.versions import versions_in_use


class UpdateParameters:
    """Replaces an AveragedModel's `update_parameters`, as an attribute that is copied and pickled with it."""

    def __init__(self, averaged: AveragedModel) -> None:
        self.averaged = averaged

    def __call__(self, model: nn.Module) -> None:
        """As the class's method.

        Raises:
            ValueError: If a layer of either model is merged, or they have versions of different adapters in
                use. Nothing is averaged then.
        """
        both = (self.averaged, model)
        merged = {name: None for each in both for name, layer in lora_layers(each) if layer.merged}
        if merged:
            raise ValueError(
                f"layers must be unmerged to be averaged; merged: {listed(merged)} (unmerge_lora)"
            )
        mine, theirs = map(versions_in_use, both)
        if mine != theirs:
            raise ValueError(
                "an AveragedModel must have the model's adapter in use, as it averages modules to save by "
                f"their place; it has {listed(mine)} and the model {listed(theirs)} (set_adapter for both)"
            )
        type(self.averaged).update_parameters(self.averaged, model)


def _before_registration(parent: nn.Module, name: str, new: nn.Module) -> None:
    if isinstance(parent, AveragedModel) and name == "module" and any(True for _ in lora_layers(new)):
        vars(parent)["update_parameters"] = UpdateParameters(parent)


observers.append(_before_registration)
