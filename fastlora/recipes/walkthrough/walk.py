"""The steps that one library does, on a net that is trained already."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from fastlora.recipes.proofs import cloned, is_sum
from fastlora.recipes.training import Track, fit, score, untracked
from fastlora.recipes.walkthrough.libraries import Library
from fastlora.recipes.walkthrough.options import WalkOptions
from fastlora.recipes.walkthrough.results import Proofs, Walk
from fastlora.recipes.walkthrough.tasks import ADAPTED, HEAD, Rows, SumMLP, Task

RATE: Final = 0.002
BATCH: Final = 64
SAME_EPOCHS: Final = 3
DOWNSTREAM_EPOCHS: Final = 10
TENSORS: Final = "adapter_model.safetensors"


class Tasks(NamedTuple):
    """The task that the net is pretrained on, and the one that it is fine-tuned for."""

    sine: Task
    threshold: Task


def walk(
    name: str,
    library: Library,
    base: SumMLP,
    tasks: Tasks,
    options: WalkOptions,
    track: Track = untracked,
) -> Walk:
    """Fine-tune a copy of the base with one library, save it, load it, merge it, and compare every tensor.

    Args:
        name: The library's name, for progress and for the adapter's folder in `options.out`.
        library: The library to use.
        base: The trained net; it is not changed.
        tasks: The tasks to train on.
        options: The rank, alpha, the folder, and the seed, which is the same for all libraries.
        track: Shows progress.

    Raises:
        FloatingPointError: If the loss is not finite.
        OSError: If a file cannot be written.
    """
    size = sum(tensor.numel() for tensor in base.parameters())
    full = library.attach(copy.deepcopy(base), options.rank, options.alpha, full=(HEAD,))
    model = library.attach(copy.deepcopy(base), options.rank, options.alpha)
    library.start(model, options.generator("A"))
    before = cloned(library.tensors(model))
    is_zero = all(not (B @ A).any() for A, B, _ in library.updates(model).values())
    losses = _train(name, model, tasks, options, track)
    after = cloned(library.tensors(model))
    accuracy = score(model, tasks.threshold.test).accuracy
    folder = options.out / name
    library.save(model, folder)
    reloaded = library.load(copy.deepcopy(base), folder)
    same_outputs = _same_outputs(model, reloaded, tasks.threshold.test)
    counts = library.count(model, size)
    scalings = {layer: update.s for layer, update in library.updates(model).items()}
    merged = library.merge_and_unload(model)
    return Walk(
        counts=counts,
        with_full_layer=library.count(full, size),
        losses=losses,
        accuracy=accuracy,
        moved={name: not torch.equal(after[name], tensor) for name, tensor in before.items()},
        change={name: _relative_change(tensor, after[name]) for name, tensor in before.items()},
        adapter_bytes=(folder / TENSORS).stat().st_size,
        merged_parameters=sum(tensor.numel() for tensor in merged.parameters()),
        proofs=Proofs(
            starts_at_zero=is_zero,
            base_identical=_holds_the_base(after, base),
            merged_holds=_is_merged(merged, after, base, scalings),
            reloaded_identical=same_outputs,
        ),
    )


def _train(
    name: str, model: nn.Module, tasks: Tasks, options: WalkOptions, track: Track
) -> dict[str, list[float]]:
    """The mean loss of each epoch: on the data of pretraining again, then on the downstream task."""
    phases = (
        ("same_data", tasks.sine, SAME_EPOCHS, "same data"),
        ("downstream", tasks.threshold, DOWNSTREAM_EPOCHS, "downstream"),
    )
    return {
        phase: train_epochs(
            model, task.train, epochs, options.generator(phase), what=f"{name}: {what}", track=track
        )
        for phase, task, epochs, what in phases
    }


def train_epochs(
    net: nn.Module,
    examples: Rows,
    epochs: int,
    generator: torch.Generator,
    *,
    what: str,
    track: Track = untracked,
) -> list[float]:
    """Train the trainable parameters by Adam in batches of 64; return the mean loss of each epoch."""
    each = -(-len(examples.labels) // BATCH)
    losses = fit(
        net,
        [parameter for parameter in net.parameters() if parameter.requires_grad],
        examples,
        batches=epochs * each,
        generator=generator,
        what=what,
        rate=RATE,
        batch=BATCH,
        track=track,
    )
    return [sum(losses[start : start + each]) / each for start in range(0, len(losses), each)]


@torch.no_grad()
def _same_outputs(one: nn.Module, other: nn.Module, examples: Rows) -> bool:
    like = next(one.parameters())
    x, _ = examples.rows(like.device, like.dtype)
    return torch.equal(one.eval()(x), other.eval()(x))


def _relative_change(before: Tensor, after: Tensor) -> float | None:
    """‖after - before‖ / ‖before‖; None if `before` is 0."""
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else None


def _holds_the_base(tensors: Mapping[str, Tensor], base: SumMLP) -> bool:
    """Whether `tensors` has every tensor of the base, bit for bit."""
    return all(torch.equal(tensors[name], own) for name, own in base.named_parameters())


def _is_merged(
    merged: nn.Module, tensors: Mapping[str, Tensor], base: SumMLP, scalings: Mapping[str, float]
) -> bool:
    """Whether each adapted weight is W + s B A up to rounding, and the others are the base's, bit for bit."""
    own = dict(base.named_parameters())
    held = dict(merged.named_parameters())
    adapted = {f"{layer}.weight": layer for layer in ADAPTED}
    return held.keys() == own.keys() and all(
        is_sum(
            held[name],
            W,
            tensors[f"{adapted[name]}.lora_A"],
            tensors[f"{adapted[name]}.lora_B"],
            scalings[adapted[name]],
        )
        if name in adapted
        else torch.equal(held[name], W)
        for name, W in own.items()
    )
