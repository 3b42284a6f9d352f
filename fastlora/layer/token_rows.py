"""Rows of an embedding, or of an output layer, that are trained for some tokens: PEFT's `token_adapter`.

W stays as it is. The rows lie in a child module; a hook puts them in the place of W's where they are used.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHILD: Final = "token_adapter"
# On an output layer whose W is that of an embedding with trained rows: a list with that embedding's rows.
TIED: Final = "_rows_of_tied_embedding"


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
            index = torch.tensor(tokens, device=rows.device)
            in_order, places = index.sort()
        self.tokens = tokens
        self.enabled = True
        self.register_buffer("in_order", in_order, persistent=False)
        self.register_buffer("places", places, persistent=False)

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


def embedded(embedding: Any, args: tuple[Any, ...], y: Tensor) -> Tensor:
    """A forward hook: the embedding's output [..., K] with the rows of trained tokens in their places."""
    own: TokenRows = getattr(embedding, CHILD)
    if not own.enabled:
        return y
    here, which = own.found(args[0])
    padding = embedding.padding_idx
    untrained = own.tokens.index(padding) if padding in own.tokens else None
    rows = F.embedding(which, own(), untrained, scale_grad_by_freq=embedding.scale_grad_by_freq).to(y.dtype)
    scale = getattr(embedding, "embed_scale", None)
    if scale is not None:
        rows = rows * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)
    return torch.where(here.unsqueeze(-1), rows, y)


def projected(head: Any, args: tuple[Any, ...], y: Tensor) -> Tensor:
    """A forward hook: an output layer's y [..., N] with the columns of trained tokens by their rows."""
    own: TokenRows = vars(head)[TIED][0] if TIED in vars(head) else getattr(head, CHILD)
    if not own.enabled:
        return y
    b = None if head.bias is None else head.bias[own.in_order]
    columns = F.linear(args[0], own().to(head.weight.dtype)[own.places], b)
    return y.index_copy(-1, own.in_order, columns.to(y.dtype))
