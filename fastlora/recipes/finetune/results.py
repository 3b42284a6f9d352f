"""What the fine-tuning job found out, as results.json has it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from fastlora.arguments import dtype_name
from fastlora.info import versions
from fastlora.layer.base_weights import like_weight, packed_format
from fastlora.model.find_layers import lora_layers
from fastlora.recipes.finetune.options import FinetuneOptions
from fastlora.routes.route import route_on

ADAPTER: Final = "adapter"
MODEL: Final = "model"
BASE: Final = "base"
PICTURE: Final = "loss.png"


@dataclass(frozen=True)
class KindOfLayer:
    """LoRA layers that are alike, and the code that computes them.

    Attributes:
        W: What W is, such as "float32" or "NF4 or FP4 of bitsandbytes".
        N: Its output features.
        K: Its input features.
        r: Rank of the update.
        layers: How many there are.
        path: "triton", "interpreter" or "torch".
        why: The reason.
    """

    W: str
    N: int
    K: int
    r: int
    layers: int
    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The results of one run.

    Attributes:
        options: The options.
        rows: {"train": rows, "evaluation": rows}, as they were read.
        sequences: How many sequences a pass over the data has, once rows are tokenized, packed or left out.
        full_length: How many of them have the whole length; the rest of a longer row was cut off.
        form: What the rows hold.
        unused: Names of other fields in them.
        loss_on: What the loss is of: "answers", "completions" or "all tokens".
        base_parameters: The model's parameters without LoRA's.
        lora_parameters: Those of LoRA.
        trainable: Those that were trained.
        kinds: The kinds of LoRA layers.
        steps: The steps of the whole run.
        losses: (step, loss) of each step.
        evaluation: (step, loss) of each evaluation.
        resumed_at: The step that the run went on at; 0 for a whole one.
        tokens: Tokens, without padding, of this process' steps and those beside it.
        tokens_per_second: Of the steps alone.
        peak_memory_bytes: See `peak_memory`.
        seconds: {phase: seconds}.
        versions: The versions of the software that it ran on.
    """

    options: FinetuneOptions
    rows: dict[str, int]
    sequences: int
    full_length: int
    form: str
    unused: tuple[str, ...]
    loss_on: str
    base_parameters: int
    lora_parameters: int
    trainable: int
    kinds: tuple[KindOfLayer, ...]
    steps: int
    losses: list[tuple[int, float]]
    evaluation: list[tuple[int, float]]
    resumed_at: int
    tokens: int
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    seconds: dict[str, float]
    versions: dict[str, str | None] = field(default_factory=versions)

    @property
    def proved(self) -> bool:
        """The job proves nothing."""
        return True

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            **vars(self),
            "options": self.options.as_json(),
            "kinds": [vars(kind) for kind in self.kinds],
        }


def kinds_of_layers(model: Any) -> tuple[KindOfLayer, ...]:
    """The kinds of LoRA layers in a model, in the order of their first one."""
    found: Counter[tuple[str, int, int, int, torch.dtype, torch.device]] = Counter()
    for _, layer in lora_layers(model):
        W, format = like_weight(layer), packed_format(layer)
        what = dtype_name(W.dtype) if format is None else format.about
        found[what, layer.out_features, layer.in_features, layer.r or 0, W.dtype, W.device] += 1
    kinds = []
    for (what, N, K, r, dtype, device), layers in found.items():
        route = route_on(device, dtype)
        kinds.append(KindOfLayer(what, N, K, r, layers, route.name, route.why))
    return tuple(kinds)
