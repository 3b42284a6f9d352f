"""Rows that are trained for some tokens: PEFT's `trainable_token_indices`. They are modules to save.

An embedding's rows count for every output layer that shares its W, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fastlora.arguments import adapter_dtype_over, shown
from fastlora.layer.commits import Commit
from fastlora.layer.fused_lora_embedding import check_embedding
from fastlora.layer.replacement import check_plain_linear
from fastlora.layer.sharding import all_finite, check_not_dtensor
from fastlora.layer.shared_weights import write_here
from fastlora.layer.token_rows import CHILD, TokenRows, use, uses_rows
from fastlora.layer.writable import check_own_writable
from fastlora.model.find_layers import LORA_LAYERS
from fastlora.model.name_matching import listed, matched_modules
from fastlora.model.versions import CHILD as VERSIONS
from fastlora.model.wrappers import module_names, unwrapped

_DEFAULT = "embed_tokens"  # PEFT's name where a model does not say which its embedding is


class Found(NamedTuple):
    """A module whose rows are to be trained, not changed yet.

    Attributes:
        module: An nn.Embedding or nn.Linear.
        rows: Its rows, made of W's; or those that it has already.
        tied: The output layers that share its W.
    """

    module: Any
    rows: TokenRows
    tied: list[Any]


def find_rows(
    model: nn.Module,
    config: Mapping[str, Sequence[int]] | Sequence[int] | None,
    dtype: Any,
    in_full: Collection[nn.Module],
) -> list[Found]:
    """The modules that a config's trainable_token_indices name, with rows for them; nothing is changed.

    Args:
        model: The model.
        config: {name of a module, or the end of one: tokens}; or tokens of the model's embedding.
        dtype: Of the rows; None as A's and B's.
        in_full: Modules that are trained in full, which can have no rows.

    Raises:
        TypeError: If a module is neither an embedding nor an output layer, or computes something else.
        ValueError: If a name matches none or several modules, a token is none of its rows, or twice there, a
            module has LoRA or is trained in full, its W is shared with one of another kind, or it has rows
            for other tokens.
    """
    names = module_names(model)
    if config is not None and not isinstance(config, Mapping):
        config = {_embedding_of(model, names): config}
    chosen: dict[Any, tuple[int, ...]] = {}
    for name, tokens in (config or {}).items():
        matches = matched_modules("trainable_token_indices", [name], names)
        if len(matches) > 1:
            raise ValueError(
                f"trainable_token_indices must name one module by {name!r}; it matches "
                f"{listed(names[each][0] for each in matches)}"
            )
        chosen[matches.pop()] = tuple(tokens)
    found: list[Found] = []
    for module, tokens in chosen.items():
        tied = _tied_to(module, names)
        if both := [names[each][0] for each in (module, *tied) if each in in_full]:
            raise ValueError(
                f"trainable_token_indices and modules_to_save must not overlap; both mean {listed(both)}"
            )
        if isinstance(module, nn.Linear) and any(other in chosen for other in tied):
            other = next(other for other in tied if other in chosen)
            if set(chosen[other]) != set(tokens):
                raise ValueError(
                    f"trainable_token_indices must be the same for modules that share a weight; they differ "
                    f"for {names[module][0]!r} and {names[other][0]!r}"
                )
            continue  # it follows the embedding
        found.append(_checked(module, names[module][0], tokens, tied, names, dtype))
    return found


def _embedding_of(model: nn.Module, names: Mapping[nn.Module, list[str]]) -> str:
    """The name of a Transformers model's embedding; else PEFT's usual one."""
    ask: Any = getattr(unwrapped(model), "get_input_embeddings", None)
    try:
        return names[ask()][0] if callable(ask) else _DEFAULT
    except (KeyError, NotImplementedError):
        return _DEFAULT


def _tied_to(module: Any, names: Mapping[nn.Module, list[str]]) -> list[Any]:
    """The other modules that hold the same W."""
    weight = module._parameters.get("weight")
    return [
        other
        for other in names
        if other is not module and any(each is weight for each in other._parameters.values())
    ]


def _checked(
    module: Any,
    name: str,
    tokens: tuple[int, ...],
    tied: list[Any],
    names: Mapping[nn.Module, list[str]],
    dtype: torch.dtype | None,
) -> Found:
    what = f"trainable_token_indices: {name!r}"
    for each in (module, *tied):
        if isinstance(each, LORA_LAYERS):
            raise ValueError(
                f"{what} must train rows of modules without LoRA; {names[each][0]!r} has it (exclude_modules)"
            )
    for each in (module, *tied):
        if uses_rows(each):
            continue
        if each is module and isinstance(module, nn.Embedding):
            check_embedding(what, module)
        else:
            check_plain_linear(f"trainable_token_indices: {names[each][0]!r}", each)
    check_not_dtensor(module.weight, f"weight of {name!r}")
    rows, size = module._modules.get(CHILD), module.weight.shape[0]
    outside = [token for token in tokens if not 0 <= token < size]
    if outside or not tokens or len(set(tokens)) < len(tokens):
        raise ValueError(
            f"{what} must have different tokens from 0 to {size - 1}, at least one; got {shown(tokens)}"
        )
    if rows is None:
        W = module.weight.detach()
        start = W[torch.tensor(tokens, device=W.device)]
        rows = TokenRows(start.to(adapter_dtype_over(W.dtype, dtype)), tokens)
        rows.train(module.training)
    elif set(rows.tokens) != set(tokens):
        raise ValueError(
            f"{what} must have the tokens that the model's adapters have, {shown(rows.tokens)}; got "
            f"{shown(tokens)} (train one adapter with all of them)"
        )
    return Found(module, rows, tied)


def put_rows(found: Sequence[Found], changing: Commit) -> list[nn.Module]:
    """Put rows in place of W's, unless they are there already; those that are new."""
    new: list[nn.Module] = []
    for module, rows, tied in found:
        if CHILD in module._modules:
            continue
        new.append(rows)
        changing.put(module._modules, CHILD, rows)
        for each in (module, *tied):
            use(each, rows, changing)
    return new


def take_rows(model: nn.Module, merge: bool, changing: Commit) -> None:
    """Take all rows away; with `merge`, W has them then."""
    for module in list(module_names(model)):
        rows: Any = module._modules.get(CHILD)
        if uses_rows(module):
            changing.drop(vars(module), "forward")
        if isinstance(rows, TokenRows):
            changing.drop(module._modules, CHILD)
            if merge:
                write_here(cast(Tensor, module.weight), _with_rows(module, rows), changing)


@torch.no_grad()
def _with_rows(module: Any, rows: TokenRows) -> Tensor:
    W: Tensor = module.weight.detach()
    index = torch.tensor(rows.tokens, device=W.device)
    return W.index_copy(0, index, rows.trainable_tokens_delta.to(W))


def token_rows(model: nn.Module) -> Iterator[tuple[str, Any, TokenRows]]:
    """(name, module, rows) of each module with trained rows."""
    for module, (name, *_) in module_names(model).items():
        rows = module._modules.get(CHILD)
        if isinstance(rows, TokenRows):
            yield name, module, rows


def with_rows(model: nn.Module, found: Sequence[Found]) -> set[nn.Module]:
    """The modules that have rows, or that take the rows of one, now or once these are put in place."""
    new = {module for each in found for module in (each.module, *each.tied)}
    return new | {module for module in module_names(model) if uses_rows(module)}


def check_rows_mergeable(model: nn.Module) -> None:
    """Raise ValueError, naming the module, if W cannot take the rows in use."""
    for name, module, rows in token_rows(model):
        check_own_writable(module, ("weight",), repr(name))
        if not all_finite(rows.trainable_tokens_delta):
            raise ValueError(f"rows of {name!r} must be finite to be merged; they hold NaN or infinity")


def start_rows(model: nn.Module, adapter: str, trained: bool) -> None:
    """Give a new adapter, not in use, W's own rows: PEFT starts so, or has none where none is trained."""
    for _, module, rows in token_rows(model):
        version: Any = rows._modules[VERSIONS]._modules[adapter]  # type: ignore[union-attr]
        values = module.weight.detach()[torch.tensor(rows.tokens, device=module.weight.device)]
        with torch.no_grad():
            version.trainable_tokens_delta.copy_(values)
        version.trains = frozenset(["trainable_tokens_delta"] if trained else [])
