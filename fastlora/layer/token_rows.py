"""Rows of an embedding, or of an output layer, that are trained for some tokens: PEFT's `token_adapter`.

W stays as it is. The rows lie in a child module, and the module's forward puts them in the place of W's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlora.layer.commits import Commit

CHILD: Final = "token_adapter"


class TokenRows(nn.Module):
    """The rows that stand for W's at some tokens.

    Args:
        rows: [n, K], what the rows start as.
        tokens: Which rows of W they stand for; n different ones.

    Attributes:
        trainable_tokens_delta: [n, K], the rows themselves, not differences; the name is PEFT's.
        tokens: As given.
        enabled: If False, W's own rows are used.
    """

    trainable_tokens_delta: nn.Parameter
    in_order: Tensor
    places: Tensor

    def __init__(self, rows: Tensor, tokens: tuple[int, ...]) -> None:
        super().__init__()
        with torch.inference_mode(False):
            self.trainable_tokens_delta = nn.Parameter(rows.detach().clone(), requires_grad=False)
        self.tokens = tokens
        self.enabled = True
        self._index()

    def _index(self) -> None:
        """Make the buffers anew, of the tokens: no file has them, and a model from "meta" no values."""
        with torch.inference_mode(False):
            index = torch.tensor(self.tokens, device=self.trainable_tokens_delta.device)
            in_order, places = index.sort()
        self.register_buffer("in_order", in_order, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> TokenRows:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._index()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.in_order.device != self.trainable_tokens_delta.device:
            self._index()

    def forward(self) -> Tensor:
        """The rows. Called as a module, so that hooks which fetch them run first."""
        return self.trainable_tokens_delta

    def found(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(whether each id is one of the tokens, which row it then has); both of the shape of `ids`."""
        near = torch.searchsorted(self.in_order, ids.contiguous()).clamp(max=len(self.tokens) - 1)
        return self.in_order[near] == ids, self.places[near]

    def extra_repr(self) -> str:
        """How many tokens, and the size of a row."""
        return f"{len(self.tokens)} tokens, {self.trainable_tokens_delta.shape[-1]}"


def use(module: Any, rows: TokenRows, changing: Commit) -> None:
    """Have an embedding or an output layer compute with these rows in the place of W's.

    By a forward of its own and no hook: torch.compile's guards do not see whether there are hooks.
    """
    own = _embedded if isinstance(module, nn.Embedding) else _projected
    changing.put(vars(module), "forward", partial(own, module, rows))


def uses_rows(module: nn.Module) -> bool:
    """Whether the module computes with rows, its own or those of an embedding that shares its W."""
    own = vars(module).get("forward")
    return isinstance(own, partial) and own.func in (_embedded, _projected)


def _embedded(embedding: Any, own: TokenRows, ids: Tensor) -> Tensor:
    """The embedding's output [..., K] with the rows of trained tokens in their places."""
    y: Tensor = type(embedding).forward(embedding, ids)
    if not own.enabled:
        return y
    here, which = own.found(ids)
    padding = embedding.padding_idx
    untrained = own.tokens.index(padding) if padding in own.tokens else None
    rows = F.embedding(which, own(), untrained, scale_grad_by_freq=embedding.scale_grad_by_freq).to(y.dtype)
    scale = getattr(embedding, "embed_scale", None)
    if scale is not None:
        rows = rows * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)
    return torch.where(here.unsqueeze(-1), rows, y)


def _projected(head: Any, own: TokenRows, x: Tensor) -> Tensor:
    """An output layer's y [..., N] with the columns of trained tokens by their rows."""
    y: Tensor = type(head).forward(head, x)
    if not own.enabled:
        return y
    b = None if head.bias is None else head.bias[own.in_order]
    columns = F.linear(x, own().to(head.weight.dtype)[own.places], b)
    return y.index_copy(-1, own.in_order, columns.to(y.dtype))
