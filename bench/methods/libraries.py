"""Libraries' layers: fastlora's, PEFT's and Microsoft's loralib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from bench.methods.experts import holds_experts, parameters_of
from bench.methods.method import (
    Method,
    Pair,
    Tuned,
    Update,
    WhyAbsent,
    fresh_pair,
    importable,
    named,
    refusing,
    replacing,
)
from fastlora import BackendError, LoRAConfig, apply_lora, lora_layers
from fastlora.routes.route import route_on


def tune_fastlora(model: nn.Module, names: Sequence[str], update: Update, *, group: bool = False) -> Tuned:
    """The call that the documentation shows."""
    where: dict[str, Any] = {"target_modules": list(names), "group": group}
    if holds_experts(model, names):
        where = {"target_parameters": parameters_of(names)}
    model = apply_lora(model, LoRAConfig(**update._asdict(), **where))
    return Tuned(model, named({name: (layer.lora_A, layer.lora_B) for name, layer in lora_layers(model)}))


def no_backend(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend that was set cannot run."""
    try:
        route_on(device, dtype)
    except BackendError as error:
        return str(error)
    return None


def tune_peft(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """get_peft_model, and A and B in the dtype asked for; of experts as stacks that lie in PEFT's memory."""
    from peft import LoraConfig, get_peft_model

    experts = holds_experts(model, names)
    where: dict[str, Any] = {"target_modules": list(names), "lora_dropout": update.dropout}
    if experts:
        where = {"target_modules": [], "target_parameters": parameters_of(names)}
    # PEFT annotates an integer alpha, and computes with whatever number it gets.
    config = LoraConfig(r=update.r, lora_alpha=update.alpha, **where)  # type: ignore[arg-type]
    wrapped = get_peft_model(model, config).train()
    pairs: dict[str, Pair] = {}
    for name in reversed(names):
        layer: Any = model.get_submodule(name)
        # PEFT wraps a module of experts once for each of its parameters, the last one outermost.
        for adapted in reversed(parameters_of([name])) if experts else [name]:
            A, B = (pair["default"].to(update.adapter_dtype).weight for pair in (layer.lora_A, layer.lora_B))
            pairs[adapted] = (A, B)
            layer = layer.base_layer
    return Tuned(wrapped, named(dict(reversed(pairs.items()))))


def tune_accelerated(model: nn.Module, names: Sequence[str], update: Update) -> Tuned:
    """PEFT's model, all of whose layers take our forward."""
    from fastlora.integrations.peft import accelerate_peft

    tuned = tune_peft(model, names, update)
    report = accelerate_peft(tuned.model)
    assert not report.stock and not report.kept, str(report)  # noqa: PT018
    return tuned


def _loralib_layer(linear: nn.Linear, update: Update) -> Any:
    """A loralib.Linear in training mode with the layer's own weight and bias, both frozen.

    `merge_weights` is off: with it, `eval` adds the update into the weight, which is then not as it was.
    """
    from loralib import Linear

    N, K = linear.weight.shape
    options: dict[str, Any] = {"lora_alpha": update.alpha, "lora_dropout": update.dropout}
    options |= {"merge_weights": False, "bias": linear.bias is not None, "dtype": linear.weight.dtype}
    # On "meta" no weight is allocated and initialized only to be replaced.
    layer = Linear(K, N, r=update.r, device="meta", **options)
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.lora_A, layer.lora_B = fresh_pair(linear, update.r, linear.weight.dtype)
    return layer


def lacking(package: str) -> WhyAbsent:
    """The `why_absent` of a method whose code is a package's."""

    def why_absent(device: torch.device, dtype: torch.dtype) -> str | None:
        found = find_spec(package)
        return importable(lambda: import_module(package)) if found else f"{package} is not installed"

    return why_absent


_NOT_MIXED = refusing(wider="it multiplies x by A as it is: one dtype for both")


FASTLORA = Method("fastlora", "fastlora.apply_lora", tune_fastlora, why_absent=no_backend)
GROUPED = replace(
    FASTLORA,
    name="grouped",
    about="fastlora with projections that share x computed together",
    tune=partial(tune_fastlora, group=True),
)
UNDROPPED = replace(
    FASTLORA,
    name="fastlora-p0",
    about="fastlora without dropout, beside it in the cases with dropout",
    tune=lambda model, names, update: tune_fastlora(model, names, update._replace(dropout=0.0)),
    drops=False,
)
PEFT = Method(
    "peft", "Hugging Face's PEFT: get_peft_model", tune_peft, why_absent=lacking("peft"), external=True
)
ACCELERATED = replace(
    PEFT,
    name="peft-fastlora",
    about="PEFT's model with our layers: accelerate_peft",
    tune=tune_accelerated,
    external=False,
)
LORALIB = Method(
    "loralib",
    "Microsoft's loralib.Linear",
    replacing(_loralib_layer, "lora_A", "lora_B"),
    why_absent=lacking("loralib"),
    why_not=_NOT_MIXED,
    external=True,
)
