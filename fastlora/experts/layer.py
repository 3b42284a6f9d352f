"""FusedLoRAExperts: the update of one stack of experts' weights, beside the module that holds them.

A module of experts keeps its class, its parameters and their names. It gets a child "lora" (`Updates`) with a
layer for each stack that is adapted, and Transformers calls our forward for it (see `hook.py`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlora import arguments
from fastlora.experts.hook import config_with_lora, register
from fastlora.experts.stacks import CHILD, Stack
from fastlora.layer import base_weights, training_warnings
from fastlora.layer.adapter import SLOTS, Options
from fastlora.layer.commits import Commit, commit, exclusive
from fastlora.layer.merging import Mergeable
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.state import put_own_values_in, saved_name


class Updates(nn.ModuleDict):
    """The LoRA layers of a module of experts, by the name of the parameter that each adapts.

    Attributes:
        config: The module's config as Transformers made it: it tells the implementation to run without LoRA.
    """

    # Each layer in it is known by its parameter's name: see model/wrappers.py.
    stands_for_parameters = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def __setstate__(self, state: Any) -> None:
        """As nn.Module's; in another process, Transformers learns of our forward."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register()


class FusedLoRAExperts(Mergeable):
    """y = x W_eᵀ + s (x A_eᵀ) B_eᵀ + b_e for the tokens of each expert e; W and b are frozen.

    `apply_lora` makes it. What it has in common with `FusedLoRALinear` works as there: adapters by name, one
    of them in use, merging and unmerging, `enabled`.

    Args:
        stack: The parameter that it adapts.
        name: The first adapter's name.
        options: The first adapter's options.
        adapter_dtype: Dtype of A and B; None means as in FusedLoRALinear.

    Attributes:
        num_experts, in_features, out_features: E, K and N.
        transposed: Whether W is stored as [E, K, N].
        enabled: If False, W alone is applied.
        adapters: All adapters by name, with `lora_A` [E, r, K] and `lora_B` [E, N, r].
        lora_A, lora_B, r, alpha, dropout, rslora, init, scaling: Those of the adapter in use.
        applied_as: Its name in the model.
    """

    _experts: nn.Module

    def __init__(
        self, stack: Stack, name: str, options: Options, adapter_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        vars(self)["_experts"] = stack.experts  # through `vars`, as it is no part of this layer
        self.parameter, self.transposed = stack.parameter, stack.transposed
        self.num_experts, self.out_features, self.in_features = stack.weight.shape
        self.training = stack.experts.training
        self._begin(name, new_adapter(stack.weight, options, adapter_dtype))

    @property
    def stack(self) -> Stack:
        """The parameter that it adapts."""
        return Stack(self._experts, self.parameter, self.transposed)

    @property
    def keeper(self) -> tuple[nn.Module, str]:
        """The module that holds W, and the parameter's name there."""
        return self._experts, self.parameter

    @property
    def weight(self) -> nn.Parameter:
        """W as the module of experts holds it: [E, N, K], or [E, K, N] if `transposed`."""
        return cast(nn.Parameter, getattr(self._experts, self.parameter))

    @property
    def bias(self) -> nn.Parameter | None:
        """b [E, N] of the module of experts, or None."""
        return cast("nn.Parameter | None", getattr(self._experts, f"{self.parameter}_bias", None))

    def place_in_state(self, path: str) -> str:
        """The name in the model's state_dict of this layer, whose name is `path`."""
        return f"{path.removesuffix(self.parameter)}{CHILD}.{self.parameter}"

    def operands(self) -> tuple[Tensor | None, Tensor | None, float, float]:
        """A, B, s and the dropout to apply now; A and B are None where W alone is applied."""
        active = self._active
        if active is None or not self.enabled or self.merged:
            training_warnings.suspect(self)
            return None, None, 0.0, 0.0
        A, B = active()
        s = arguments.scaling(active.r, active.alpha, active.rslora)
        return A, B, s, active.dropout_now(self.training)

    def _freeze_base(self) -> None:
        """Freeze W and b, in the commit in progress or in a new one."""
        with commit() as changing:
            changing.freeze(self.weight)
            if self.bias is not None:
                changing.freeze(self.bias)

    def _sum(self) -> Tensor:
        W, active = base_weights.frozen_weight(self).detach(), self._active
        if active is None:
            return W.clone()
        W = W.transpose(1, 2) if self.transposed else W
        total = active.added_to(W)
        return total.transpose(1, 2) if self.transposed else total

    @exclusive
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As nn.Module's, but W is saved under the experts' own name, even if the layer is merged."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._base_weight is not None:
            experts = prefix.removesuffix(f"{CHILD}.{self.parameter}.")
            destination[experts + self.parameter] = self._base_weight

    def _load_from_state_dict(self, *args: Any) -> None:
        with commit():
            super()._load_from_state_dict(*args)

    @exclusive
    def _prepare_load(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Before the module of experts, whose keys start with `prefix`, loads W, and this layer A and B.

        A merged layer is unmerged, as its weight holds the old update. A checkpoint without A and B leaves
        the adapters unchanged.
        """
        own = f"{prefix}{CHILD}.{self.parameter}."
        slots = (own + saved_name(str(self.adapter), slot) for slot in SLOTS)
        if any(name in state_dict for name in (prefix + self.parameter, *slots)):
            self.unmerge()
        if prefix + self.parameter in state_dict and not any(name.startswith(own) for name in state_dict):
            put_own_values_in(
                self.adapters, state_dict, own + "adapters.", state_dict[prefix + self.parameter]
            )

    def reset_parameters(self) -> None:
        """Reset all adapters. Code that builds a model on "meta" calls this after `to_empty`."""
        self.reset_adapters()

    def extra_repr(self) -> str:
        """The sizes of W, then the adapter's."""
        sizes = (
            f"{self.num_experts} experts, in_features={self.in_features}, out_features={self.out_features}"
        )
        return f"{sizes}, {super().extra_repr()}"


def layer_over(
    stack: Stack, name: str, adapter_dtype: torch.dtype | str | None = None, **options: Any
) -> FusedLoRAExperts:
    """A layer for a stack, not yet beside its module; the options are FusedLoRALinear's."""
    dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
    return FusedLoRAExperts(stack, name, Options.checked(**options), dtype)


def put_beside(layer: FusedLoRAExperts, changing: Commit) -> None:
    """Put a layer beside its module of experts, whose forward is ours from then on."""
    experts = layer._experts
    if CHILD not in experts._modules:
        own: Any = vars(experts)["config"]
        updates = Updates(own).train(experts.training)
        changing.put(experts._modules, CHILD, updates)
        changing.put(vars(experts), "config", config_with_lora(own))
        changing.keep(experts._load_state_dict_pre_hooks)
        experts.register_load_state_dict_pre_hook(_before_load)
    updates = cast(Updates, experts._modules[CHILD])
    # In the order of the module's parameters, which is the order in files.
    layers = {**updates._modules, layer.parameter: layer}
    for name in [name for name in experts._parameters if name in layers]:
        changing.drop(updates._modules, name)
        changing.put(updates._modules, name, layers[name])


def take_away(layer: FusedLoRAExperts, changing: Commit) -> None:
    """Take a layer from its module of experts; behind the last one the module is as it was."""
    experts = layer._experts
    updates = cast(Updates, experts._modules[CHILD])
    changing.drop(updates._modules, layer.parameter)
    if not updates._modules:
        changing.drop(experts._modules, CHILD)
        changing.put(vars(experts), "config", updates.config)
        for key, hook in [*experts._load_state_dict_pre_hooks.items()]:
            if getattr(hook, "hook", None) is _before_load:
                changing.drop(experts._load_state_dict_pre_hooks, key)


def _before_load(experts: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    layers: Any = experts._modules[CHILD]
    for layer in layers.values():
        layer._prepare_load(state_dict, prefix)
