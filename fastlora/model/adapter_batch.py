"""Several adapters in one batch: each row, or each token, takes its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastlora.arguments import check_choice, shown
from fastlora.layer.active_adapter import check_switchable
from fastlora.layer.adapter_batch import BATCH, AdapterBatch
from fastlora.layer.base_weights import check_original_weights
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.lora_conv import CONVOLUTIONS
from fastlora.layer.magnitude import check_plain_lora
from fastlora.layer.writable import check_trainable
from fastlora.model.biases import biases_of
from fastlora.model.ddp import note_change
from fastlora.model.find_layers import LoRALayer, existing_layers
from fastlora.model.name_matching import listed
from fastlora.model.switching import active_adapter, adapter_names
from fastlora.model.token_rows import token_rows
from fastlora.model.versions import idle_versions
from fastlora.warning import warn

NONE = "__base__"


@contextmanager
def adapter_batch(
    model: nn.Module, names: Sequence[str | None], *, ids: Tensor | None = None
) -> Iterator[None]:
    """Give each row of a batch an adapter of its own, for a `with` block.

        with adapter_batch(model, ["fr", "fr", "de", None]):
            model(**batch).loss.backward()

    Every LoRA layer computes all rows at once: one product with W, and thin ones for each adapter. Gradients
    go to the adapters in the batch that are trained (see `train_adapters`); those of others stay None.

    Args:
        model: A model with LoRA layers, unmerged.
        names: The adapter of each row of the batch (dimension 0 of every layer's x); None, or PEFT's
            "__base__", for no update. With `ids`: the adapters that `ids` counts.
        ids: Integers, [batch] or [batch, tokens], for batches whose rows hold tokens of several adapters,
            such as packed ones: an index into `names` for each row or token, or -1 for no update. With
            tokens, layers may also see batch and tokens as one dimension.

    Raises:
        TypeError: If `names` is no sequence of names, or `ids` no tensor of integers.
        ValueError: If there is no LoRA layer or no such adapter, naming the row; one is DoRA's; a layer is
            merged, divided among processes, or initialized from its W; or another batch of this model is in
            force.
    """
    batch = _checked(model, names, ids)
    try:
        _enter(model, batch)
        yield
    finally:
        batch.ended = True


@exclusive
def _enter(model: nn.Module, batch: AdapterBatch) -> None:
    layers = existing_layers(model)
    check_original_weights(layers, "adapters are mixed over the W from before")
    check_plain_lora(layers, batch.names, "be mixed in one batch")
    for what, wrong in (
        ("unmerged", [name for name, layer in layers.items() if layer.merged]),
        ("whole, not divided among processes", [name for name, layer in layers.items() if layer.split]),
        ("linear, not experts", [name for name, layer in layers.items() if hasattr(layer, "num_experts")]),
        (
            "linear, no embeddings or convolutions",
            [n for n, layer in layers.items() if isinstance(layer, (nn.Embedding, *CONVOLUTIONS))],
        ),
        ("in no other adapter_batch", [name for name, layer in layers.items() if layer.in_batch]),
    ):
        if wrong:
            raise ValueError(f"layers must be {what} to mix adapters; these are not: {listed(wrong)}")
    if rows := [name for name, _, _ in token_rows(model)]:
        raise ValueError(
            f"rows of tokens are those of the adapter in use, for a whole batch; {listed(rows)} has some "
            "(one adapter a batch, by set_adapter)"
        )
    foreign = {*batch.names} - {active_adapter(model)}
    if foreign and any(True for _ in idle_versions(model)):
        raise ValueError(
            "modules to save have a version for each adapter, and a batch has those in use; got rows of "
            f"{listed(sorted(foreign))} (one adapter a batch, by set_adapter)"
        )
    batch.trains = model.training and torch.is_grad_enabled()
    if batch.trains:
        _tell_of_resting(layers.values(), batch.names)
    with commit() as changing:
        for layer in layers.values():
            changing.put(vars(layer), BATCH, batch)


@exclusive
def train_adapters(model: nn.Module, names: Iterable[str]) -> None:
    """Have several adapters trained, for batches that mix them: their A and B require gradients.

    The adapter in use stays in use, and is trained only if it is named. Call it before the optimizer is made,
    and give that the parameters that require gradients. `set_adapter` freezes only the adapter that it puts
    aside.

    Args:
        model: A model with LoRA layers.
        names: The adapters to train, with the biases that one of them trains. All others are frozen.

    Raises:
        TypeError: If `names` is one string.
        ValueError: If there is no LoRA layer or no such adapter, or A or B is computed from other tensors.
    """
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of adapter names; got the string {shown(names)}")
    known = adapter_names(model)
    chosen = {check_choice("names", name, known) for name in names}
    layers = existing_layers(model)
    for name, layer in layers.items():
        for each in layer.adapters:
            check_switchable(layer, each, f"layer {name!r}")
    with commit() as changing:
        note_change(model, changing)
        for layer in layers.values():
            for name in layer.adapters:
                adapter = layer.adapters[name]
                for slot in adapter.slots:
                    factor = getattr(adapter, slot)
                    if name in chosen:
                        changing.assign(factor, "requires_grad", True)
                    else:
                        changing.freeze(factor)
        for name in known:
            for what, b in biases_of(model, name).items():
                if name in chosen:
                    check_trainable(b, f"{what}.bias".lstrip("."))
                    changing.assign(b, "requires_grad", True)
                else:
                    changing.freeze(b)


def _checked(model: nn.Module, names: Sequence[str | None], ids: Tensor | None) -> AdapterBatch:
    """The batch, if the arguments describe one."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names must be a sequence with the adapter of each row; got {shown(names)}")
    known = adapter_names(model)
    for row, name in enumerate(names):
        if name is not None and name != NONE and name not in known:
            raise ValueError(
                f"names[{row}] must be one of {', '.join(known)}, or None for no update; got {shown(name)}"
            )
    used = tuple(dict.fromkeys(name for name in names if name is not None and name != NONE))
    index = [used.index(name) if name in used else -1 for name in names]
    if ids is None:
        return AdapterBatch(used, index, (len(names),))
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be a tensor of integers; got {shown(ids)}")
    if ids.dim() not in (1, 2):
        raise ValueError(f"ids must have shape [batch] or [batch, tokens]; got {list(ids.shape)}")
    found = ids.flatten().tolist()
    for row, one in enumerate(found):
        if not -1 <= one < len(names):
            raise ValueError(f"ids must be -1 to {len(names) - 1}, into names; got {one} at row {row}")
    return AdapterBatch(used, [index[one] if one >= 0 else -1 for one in found], tuple(ids.shape))


def _tell_of_resting(layers: Iterable[LoRALayer], names: tuple[str, ...]) -> None:
    """Warn of adapters in a training batch that are frozen only because they are not in use."""
    adapters = [layer.adapters[name] for layer in layers for name in names if name in layer.adapters]
    resting = dict.fromkeys(
        each.name
        for each in adapters
        if any(each.trains) and not any(factor.requires_grad for factor in each.parameters())
    )
    if resting:
        warn(
            f"adapters of this batch are not trained, as they are not in use: {listed(resting)} "
            "(train_adapters, before the optimizer is made, trains several)",
        )
