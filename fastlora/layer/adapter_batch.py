"""A layer inside `adapter_batch`: the rows of x take different adapters."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from fastlora.autograd.mixed import mixed_lora_linear
from fastlora.formula.operands import BaseWeight
from fastlora.formula.runs import Runs
from fastlora.routes.mixed import Factors

BATCH: Final = "_batch"


class AdapterBatch:
    """Which rows of a batch take which adapter, for every layer of a model.

    Args:
        names: The adapters.
        ids: For each item the index of its name; -1 for none.
        shape: The leading dimensions of x: [batch] or [batch, tokens].

    Attributes:
        trains: Whether it was entered in training.
        ended: Whether its `with` block was left. The layers keep it until they run again, because activation
            checkpointing could run them once more for this batch, and would then have to be told.
    """

    def __init__(self, names: tuple[str, ...], ids: list[int], shape: tuple[int, ...]) -> None:
        self.names = names
        self.shape = shape
        self.runs = Runs(ids)
        self.trains = False
        self.ended = False

    def applies(self, layer: Any) -> bool:
        """Whether the layer's forward pass is one of this batch.

        Raises:
            ValueError: If the layer is merged, or is run again for a backward pass after the batch ended.
        """
        if self.ended:
            if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
                raise ValueError(
                    "backward must be called inside adapter_batch where activation checkpointing runs layers "
                    f"again; layer {layer.applied_as!r} was run again after the block had ended"
                )
            vars(layer).pop(BATCH, None)
            return False
        if layer.merged:
            raise ValueError(f"layers must be unmerged in adapter_batch; {layer.applied_as!r} was merged")
        return bool(layer.enabled)

    def computed(self, layer: Any, x: Tensor, W: Tensor | BaseWeight, b: Tensor | None) -> Tensor:
        """The layer's y [..., N] for x [..., K].

        Raises:
            ValueError: If x's leading dimensions are not the batch's.
        """
        dims = len(self.shape)
        fits = x.dim() > dims and x.shape[:dims] == self.shape
        joined = dims == 2 and x.dim() == 2 and x.shape[0] == self.runs.items
        if not fits and not joined:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"x of layer {layer.applied_as!r} must have shape [{wanted}, ..., K={layer.in_features}] in "
                f"this adapter_batch; got {list(x.shape)}. Where a model joins batch and tokens, or repeats "
                "rows, say the adapter of each row of x that its layers see"
            )
        return mixed_lora_linear(x, W, b, self.runs, [self._factors(layer, name) for name in self.names])

    def _factors(self, layer: Any, name: str) -> Factors | None:
        """A layer's A, B, s and dropout for one of the adapters; None if it has no part in it."""
        adapter = layer.adapters._modules.get(name)
        if adapter is None:
            return None
        # Called as a module, so that hooks which fetch offloaded parameters run first.
        A, B = adapter()
        return Factors(A, B, adapter.scaling, adapter.dropout_now(layer.training))
