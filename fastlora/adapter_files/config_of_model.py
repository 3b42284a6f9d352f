"""The adapter_config.json of an adapter of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from fastlora.adapter_files import describe
from fastlora.adapter_files.adapter_config import AdapterConfig
from fastlora.experts.layer import FusedLoRAExperts
from fastlora.layer.adapter import Options
from fastlora.layer.fused_lora_conv1d import FusedLoRAConv1D
from fastlora.layer.token_rows import TokenRows
from fastlora.model.biases import kind_of
from fastlora.model.find_layers import LoRALayer
from fastlora.model.name_matching import listed
from fastlora.model.tasks import task_of
from fastlora.model.token_rows import token_rows
from fastlora.model.wrappers import modules_by_name
from fastlora.warning import warn


def text_of_config(
    model: nn.Module,
    name: str,
    found: Mapping[str, LoRALayer],
    layers: Mapping[str, tuple[Tensor, Tensor, Options]],
    plain: Mapping[str, nn.Module],
    base_model_name_or_path: str | None,
    task_type: str | None,
) -> str:
    """Its text.

    Args:
        model: The model.
        name: The adapter.
        found: {layer: the layer} of the model.
        layers: {layer: A, B and options} as the file is to have them.
        plain: {module: the module} of those that are trained in full, and of rows of tokens.
        base_model_name_or_path: None means the name that a Transformers model has.
        task_type: None means the task that is known of the model.

    Raises:
        ValueError: If some layers have DoRA or a bias of B and others not, or the task's head is not saved.
    """
    known = modules_by_name(model)
    inner = known[""]
    rows = {path: list(each.tokens) for path, _, each in token_rows(model)}
    in_full = {path: each for path, each in plain.items() if not isinstance(each, TokenRows)}
    experts = {layer for layer in layers if isinstance(found[layer], FusedLoRAExperts)}
    options = {layer: options for layer, (_, _, options) in layers.items()}
    config = replace(_config(options, experts, in_full, known), bias=kind_of(model, name))
    task_type = task_of(model, task_type)
    return config.dumps(
        target_modules=describe.target_modules(layers.keys() - experts, known.keys() - experts),
        target_parameters=describe.target_parameters(experts, model) or None,
        base_model_name_or_path=base_model_name_or_path or vars(inner).get("name_or_path") or None,
        task_type=task_type,
        trainable_token_indices=describe.trainable_token_indices(rows, known),
        fan_in_fan_out=any(isinstance(found[layer], FusedLoRAConv1D) for layer in layers),
        auto_mapping=None if task_type else _class_of(inner),
    )


def _config(
    options: dict[str, Options],
    experts: Collection[str],
    plain: dict[str, nn.Module],
    known: dict[str, nn.Module],
) -> AdapterConfig:
    dropout = _one_dropout({each.dropout for each in options.values()}, of_experts=bool(experts))
    if len({each.rslora for each in options.values()}) > 1:
        options = {layer: _without_rslora(each) for layer, each in options.items()}
    r, rank_pattern = describe.pattern({layer: each.r for layer, each in options.items()})
    alpha, alpha_pattern = describe.pattern({layer: each.alpha for layer, each in options.items()})
    first = next(iter(options.values()))
    for field, key in (("dora", "use_dora"), ("lora_bias", "lora_bias")):
        chosen = [layer for layer, each in options.items() if getattr(each, field)]
        if 0 < len(chosen) < len(options):
            raise ValueError(
                f"an adapter's layers must have {key} all or none, as PEFT's config has one; these have it: "
                f"{listed(chosen)}"
            )
    return AdapterConfig(
        r=r,
        alpha=alpha,
        dropout=dropout,
        rslora=first.rslora,
        dora=first.dora,
        lora_bias=first.lora_bias,
        init=first.init,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        modules_to_save=tuple(describe.modules_to_save(plain, known)),
    )


def _one_dropout(dropouts: set[float], *, of_experts: bool) -> float:
    """The dropout of a config, which has but one, with a warning where that is not what every layer has."""
    dropout = max(dropouts)
    if len(dropouts) > 1:
        warn(
            f"layers have different dropout, {', '.join(map(str, sorted(dropouts)))}; PEFT's config has but "
            f"one, so all will be loaded with {dropout}",
        )
    if of_experts and dropout:
        warn(
            f"a dropout of {dropout:g} is not written: PEFT refuses files with dropout on experts, so it has "
            "to be set again where the training goes on",
        )
        return 0.0
    return dropout


def _without_rslora(options: Options) -> Options:
    """Options with the same scaling, expressed as alpha / r."""
    return options._replace(alpha=options.scaling * options.r, rslora=False)


def _class_of(model: nn.Module) -> dict[str, str]:
    return {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
