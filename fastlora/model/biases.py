"""Biases that are trained beside LoRA: PEFT's `bias`, "lora_only" (of layers with LoRA) or "all".

They are trained in place: as in PEFT there is one b for all adapters, and one adapter alone may train it. Its
`biases` says which; they are trained while it is in use, and saved with it. Where another adapter is in use,
or LoRA is switched off, they stay as trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from fastlora.arguments import ALL_BIASES, NO_BIASES
from fastlora.layer.adapter import Adapter
from fastlora.layer.commits import Commit
from fastlora.layer.writable import check_trainable
from fastlora.model.find_layers import lora_layers
from fastlora.model.modules_to_save import can_train, inside, saved_modules
from fastlora.model.token_rows import token_rows
from fastlora.model.wrappers import module_names
from fastlora.warning import warn


def kind_of(model: nn.Module, name: str) -> str:
    """Which biases an adapter trains: "none", "lora_only" or "all"."""
    found = (layer.adapters[name].biases for _, layer in lora_layers(model) if name in layer.adapters)
    return next(found, NO_BIASES)


def biases_of(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{name of the module: its bias} of those that an adapter trains."""
    return _biases(model, ((layer, layer.adapters._modules.get(name)) for _, layer in lora_layers(model)))


def biases_in_use(model: nn.Module) -> dict[str, nn.Parameter]:
    """As `biases_of`, of the adapter in use."""
    return _biases(model, ((layer, layer.active) for _, layer in lora_layers(model)))


def check_one_adapter(model: nn.Module, name: str, kind: str) -> None:
    """Raise ValueError unless the adapter `name` may train these biases beside the model's other adapters."""
    if kind == NO_BIASES:
        return
    for _, layer in lora_layers(model):
        for other, adapter in layer.adapters.items():
            if other != name and adapter.biases != NO_BIASES:
                raise ValueError(
                    f"bias must be 'none', as adapter {other!r} trains biases (bias={adapter.biases!r}) and "
                    f"one adapter alone can, as in PEFT; got {kind!r}"
                )


def give_biases(model: nn.Module, name: str, kind: str, changing: Commit) -> None:
    """Have an adapter train biases, as `kind` says, once it is in use.

    Raises:
        ValueError: If another adapter trains biases, or one that is meant is no parameter of its module, or
            belongs to a module with rows of tokens.
    """
    check_one_adapter(model, name, kind)
    if kind == NO_BIASES:
        return
    for own, layer in lora_layers(model):
        if name not in layer.adapters:
            continue
        if "bias" not in layer._parameters and isinstance(getattr(layer, "bias", None), Tensor):
            raise ValueError(f"bias must be 'none', as that of layer {own!r} is no parameter; got {kind!r}")
        changing.put(vars(layer.adapters[name]), "biases", kind)
    rows = [own for own, module, _ in token_rows(model) if module._parameters.get("bias") is not None]
    if kind == ALL_BIASES and rows:
        raise ValueError(
            f"bias must not be 'all' beside trainable_token_indices of {rows[0]!r}, which has a bias"
        )
    if not biases_of(model, name):
        warn(f"bias={kind!r} trains no bias: there is none in the model")


def train_biases(model: nn.Module, changing: Commit) -> None:
    """Make the biases of the adapter in use trainable.

    Raises:
        ValueError: If one was made in torch.inference_mode.
    """
    for name, b in biases_in_use(model).items():
        check_trainable(b, f"{name}.bias".lstrip("."))
        changing.assign(b, "requires_grad", True)


def warn_if_trained(model: nn.Module, what: str) -> None:
    """Warn that biases were trained, where `what` leaves them so; as PEFT does."""
    kinds = {adapter.biases for _, layer in lora_layers(model) for adapter in layer.adapters.values()}
    if kind := next(iter(kinds - {NO_BIASES}), None):
        warn(f"{what} does not give the model from before LoRA: with bias={kind!r} biases stay as trained")


def trained_by_any(model: nn.Module) -> dict[str, nn.Parameter]:
    """As `biases_of`, of all adapters."""
    return _biases(
        model, ((layer, each) for _, layer in lora_layers(model) for each in layer.adapters.values())
    )


def _biases(model: nn.Module, adapters: Iterable[tuple[Any, Any]]) -> dict[str, nn.Parameter]:
    found: list[tuple[Any, Adapter]] = [
        (layer, adapter) for layer, adapter in adapters if adapter is not None and adapter.biases != NO_BIASES
    ]
    if not found:
        return {}
    own = {layer for layer, _ in found}
    every = any(adapter.biases == ALL_BIASES for _, adapter in found)
    in_full = inside(module for _, module in saved_modules(model))
    return {
        name: b
        for module, (name, *_) in module_names(model).items()
        if (b := module._parameters.get("bias")) is not None
        and (every or module in own)
        and module not in in_full
        and can_train(b)
    }
