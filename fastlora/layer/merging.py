"""Merging: adding the update of one layer to its weight, and restoring the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlora.arguments import check_bool
from fastlora.layer import base_weights, sharding
from fastlora.layer.adapters import Adapted, AdaptedLinear
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.replaced_layers import in_place_of_lora
from fastlora.layer.replacement import check_own_forward, linear_as
from fastlora.layer.shared_weights import check_unshared_elsewhere, put_values, seen_elsewhere, write_here
from fastlora.layer.writable import check_own, check_own_writable, check_writable


class Mergeable(Adapted):
    """The part of a LoRA layer that merges. With DoRA, W + s B A means diag(c) (W + s B A) everywhere."""

    weight: Any

    @property
    def keeper(self) -> tuple[nn.Module, str]:
        """The module that holds W, and the parameter's name there."""
        return self, "weight"

    def place_in_state(self, path: str) -> str:
        """The name in the model's state_dict of this layer, whose name is `path`."""
        return path

    @property
    def merged(self) -> bool:
        """Whether `weight` holds W + s B A at present."""
        return self._base_weight is not None

    @exclusive
    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """A copy of the [N, K] weight that forward applies: W + s B A while enabled, else W.

        W is exact, except after `initialize`: then it is the W from before, restored with one rounding.
        """
        if self.enabled and not self.merged:
            return self._sum()
        return self.weight.detach().clone() if self.enabled else base_weights.original_weight(self)

    @exclusive
    def merge(self) -> None:
        """Add s B A into `weight`, summed in fp32 and rounded once; W is kept aside for `unmerge`.

        While merged, forward is one plain linear layer, and A and B receive no gradient. Merging a merged
        layer changes nothing. A `weight` on a CPU that `share_memory` has shared with other processes keeps
        its values there: the sum lies in this process alone.

        Raises:
            ValueError: If the sum holds NaN or infinity, or `weight` is shared by another LoRA layer, of any
                model, is computed from other tensors (by a parametrization, say) or cannot be written in
                place. The layer is then unchanged.
        """
        if not self.merged:
            check_unshared_elsewhere([self], "merged")
            self._merge()

    @torch.no_grad()
    def _merge(self) -> None:
        check_own_writable(self.keeper[0], self.keeper[1:], "the layer")
        total, W = self._finite_sum(), self.weight
        with torch.inference_mode(False):
            base = W.detach() if seen_elsewhere(W) else W.detach().clone()
        with commit() as changing:
            changing.put(self._buffers, "_base_weight", base)
            write_here(W, total, changing, before=base)

    @exclusive
    def unmerge(self) -> None:
        """Restore W, bit for bit. Unmerging an unmerged layer changes nothing.

        A `weight` that was packed while it was merged, as by torchao, becomes a plain parameter again.

        Raises:
            ValueError: If `weight` cannot be written in place any more.
        """
        if self.merged:
            self._check_restorable("the layer")
            with commit() as changing:
                changing.then(self._put_back)

    def _check_restorable(self, what: str) -> None:
        """Raise ValueError, calling the layer `what`, unless W can be put back."""
        check_own(self.keeper[0], self.keeper[1:], what)
        if not odd_tensor(self.weight):  # packed since: a new parameter takes its place
            check_writable(self.weight, f"{self.keeper[1]} of {what}")

    @torch.no_grad()
    def _put_back(self) -> None:
        kept, W = self._base_weight, self.weight
        if kept is None:
            return
        if odd_tensor(W):
            owner, name = self.keeper
            owner._parameters[name] = nn.Parameter(kept, requires_grad=False)
        elif seen_elsewhere(kept):
            W.data = kept
        else:
            put_values(W, kept)
        self._base_weight = None

    def _sum(self) -> Tensor:
        W, active = base_weights.frozen_weight(self), self._active
        if active is None:
            return W.detach().clone()
        return active.added_to(W)

    def _finite_sum(self) -> Tensor:
        return finite(self._sum())


class MergeableLinear(Mergeable, AdaptedLinear):
    """The part of FusedLoRALinear that merges."""

    @exclusive
    @torch.inference_mode(False)  # a plain layer may be trained later
    @torch.no_grad()
    def to_linear(self, merge: bool = True) -> nn.Linear:
        """A plain nn.Linear with this layer's bias object, hooks and mode; this layer is unchanged.

        Args:
            merge: True gives the weight W + s B A, as a new, frozen parameter, and the bias b + s b_B where
                B has one. False gives W: this layer's own parameter, or a copy of W while it is merged.

        Raises:
            TypeError: If this layer's forward was replaced.
            ValueError: If `merge` is True and W + s B A holds NaN or infinity; or if W or b is computed from
                other tensors (by a parametrization, say).
        """
        check_bool(merge, "merge")
        check_own_forward("layer", self)
        check_own(self, ("weight", "bias"), "the layer")
        if merge:
            weight = nn.Parameter(self._finite_sum(), requires_grad=False)
        elif self._base_weight is not None:
            weight = nn.Parameter(self._base_weight.clone(), requires_grad=False)
        else:
            weight = self.weight
        linear = self._as_plain_linear()
        linear.weight = weight
        if merge:
            linear.register_parameter("bias", self._merged_bias(weight.dtype))
        return in_place_of_lora(linear)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _merged_bias(self, dtype: torch.dtype) -> nn.Parameter | None:
        """The bias beside W + s B A: b itself, or b + s b_B in its dtype, or `dtype` where there is no b."""
        b: Any = self.bias
        if self._active is None or not self._active.lora_bias:
            return b  # type: ignore[no-any-return]
        total = self._active.added_to_bias(b, dtype if b is None else b.dtype)
        return nn.Parameter(total, requires_grad=False)

    def _as_plain_linear(self) -> nn.Linear:
        """An nn.Linear with this layer's own weight and bias objects, hooks and mode."""
        return linear_as(self, nn.Linear, without=self._own_attributes)


def finite(total: Tensor) -> Tensor:
    """The sum W + s B A, if it may be merged; ValueError if it holds NaN or infinity."""
    if not total.is_meta and not sharding.all_finite(total):
        raise ValueError(f"W + s B A must be finite in {total.dtype} to be merged; it holds NaN or infinity")
    return total
