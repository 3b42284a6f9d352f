"""Adding LoRA to a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import nn

from fastlora.config import LoRAConfig
from fastlora.experts.layer import layer_over
from fastlora.experts.stacks import Stack
from fastlora.layer.active_adapter import name_in_use
from fastlora.layer.adapter import DEFAULT
from fastlora.layer.around import lora_layer_around
from fastlora.layer.commits import commit, exclusive
from fastlora.model import averages, buffers, transformers_saving  # noqa: F401 - averages looks on
from fastlora.model.biases import give_biases, kind_of
from fastlora.model.find_layers import (
    LoRALayer,
    check_model,
    check_outside_batches,
    lora_layers,
)
from fastlora.model.freezing import freeze
from fastlora.model.groups import group_projections
from fastlora.model.modules_to_save import (
    find_modules_to_save,
    inside,
    mark,
)
from fastlora.model.peft_config import as_config
from fastlora.model.replace import replace_modules
from fastlora.model.targets import Target, find_targets
from fastlora.model.tasks import heads_to_train, remember_task
from fastlora.model.token_rows import find_rows, put_rows, with_rows
from fastlora.model.wrappers import module_names

_Model = TypeVar("_Model", bound=nn.Module)


@exclusive
def apply_lora(model: _Model, config: Any) -> _Model:
    """Add a LoRA update to linear layers of a model, in place, and freeze everything else.

    The modules that `config.modules_to_save` names are trained in full, too. Every other parameter, including
    those of norms and embeddings, is frozen and loses its gradient. Buffers such as running means still
    change in training mode; saving an adapter warns of those that did. Everything is checked before anything
    is changed.

    target_modules="all-linear" means each module that is exactly an nn.Linear, except layers that have LoRA
    already, and the output head that a Transformers model names (as in PEFT). In a mixture it means the
    experts' weights too, where they are 3-D parameters of a module that takes Transformers' hook for experts;
    the router is frozen. The Conv1D of GPT-2 counts as an nn.Linear. Subclasses are left out, as their weight
    may be used without calling them: nn.MultiheadAttention does so with its out_proj. To name any of these
    explicitly, except the head, is an error. Other linear maps that are not an nn.Linear (other experts, say)
    are an error, unless exclude_modules leaves them out.

    A layer registered in several places is replaced in all of them. A weight tied to another module's stays
    tied. If a parent reads a layer's weight without calling the layer, the update has no effect there. For
    nn.TransformerEncoderLayer, the inference fast path that does so is turned off.

    Args:
        model: Any module; it may itself be an nn.Linear.
        config: Which layers, and what update: a LoRAConfig, or a peft.LoraConfig that uses no option that is
            unsupported here.

    Returns:
        The model; the new layer if the model itself is an nn.Linear (a FusedLoRALinear is one).

    Raises:
        TypeError: If an argument is of the wrong type, or a module that was named is not exactly an nn.Linear
            (or its forward was replaced or compiled), or "all-linear" meets linear maps of another kind.
        ValueError: If a pattern matches nothing (near names are listed), nothing is left to adapt, a layer
            that was named has LoRA already, a module to save shares a weight with the rest, or biases cannot
            be trained; or inside `adapter_batch`.
    """
    check_model(model)
    check_outside_batches(dict(lora_layers(model)))
    config = as_config(model, config)
    saved, heads = find_modules_to_save(model, config.modules_to_save), heads_to_train(model, config)
    rows = find_rows(model, config.trainable_token_indices, config.adapter_dtype, inside([*saved, *heads]))
    trained = inside([*saved, *heads]) | with_rows(model, rows)
    targets = find_targets(model, config, trained=trained, heads=inside(heads))
    in_use = name_in_use(layer for _, layer in lora_layers(model))
    if in_use and config.bias != kind_of(model, in_use):
        raise ValueError(
            f"bias must be {kind_of(model, in_use)!r}, as adapter {in_use!r} has it; got {config.bias!r}"
        )
    options = {target.linear: options_for(target, config) for target in targets}
    layers = make_layers(model, options, in_use or DEFAULT)
    with commit() as changing:
        applied = replace_modules(model, layers.items())
        put_rows(rows, changing)
        mark([*saved, *heads, *(each.rows for each in rows)], changing)
        remember_task(applied, config.task_type, changing)
        give_biases(applied, in_use or DEFAULT, config.bias, changing)
        freeze(applied)
        buffers.note(applied, changing)
        transformers_saving.install(applied, changing)
        if config.group:
            group_projections(applied)
    return cast(_Model, applied)


def options_for(target: Target, config: LoRAConfig) -> dict[str, Any]:
    """The options of `FusedLoRALinear.from_linear` for a target."""
    return {
        "r": target.r,
        "alpha": target.alpha,
        "dropout": config.dropout,
        "rslora": config.rslora,
        "init": config.init,
        "dora": config.dora,
        "lora_bias": config.lora_bias,
        "adapter_dtype": config.adapter_dtype,
    }


def make_layers(
    model: nn.Module, options: Mapping[Any, Mapping[str, Any]], adapter: str
) -> dict[Any, LoRALayer]:
    """Make, but do not yet put in place, a LoRA layer for each plain layer or stack, with this adapter.

    Plain layers and stacks do not change; the caller freezes W and b when it puts the LoRA layers in place.
    """
    names = module_names(model)
    layers: dict[Any, LoRALayer] = {}
    for plain, chosen in options.items():
        if isinstance(plain, Stack):
            layers[plain] = layer_over(plain, adapter, **chosen)
            layers[plain].applied_as = f"{names[plain.experts][0]}.{plain.parameter}".lstrip(".")
        else:
            layers[plain] = lora_layer_around(plain, name=adapter, **chosen)
            layers[plain].applied_as = names[plain][0]
    return layers
