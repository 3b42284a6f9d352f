"""Models without weights: from a Transformers config, or from a list of linear layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastlora.accounting.budget import Budget, training_budget
from fastlora.accounting.transformers_config import ConfigError, find_config, in_short
from fastlora.arguments import check_rank
from fastlora.config import LoRAConfig
from fastlora.model.apply import apply_lora

_LAYER: Final = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+),(\d+)(?:\*(\d+))?")

# A larger number is a typing error, and the product of two may exceed 64 bits.
_LARGEST: Final = 10**9
_MOST_LAYERS: Final = 10_000

_UNMASKED: Final = "sdpa_of_whole_rows"


class BlueprintError(ValueError):
    """The model cannot be built from its description."""


class _Batch(NamedTuple):
    rows: int
    tokens: int


def blueprint_budget(
    spec: str,
    config: LoRAConfig,
    *,
    batch: int = 1,
    tokens: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
) -> Budget:
    """Count what training a model takes, from a description of it; no weights are made or read.

    Args:
        spec: Which model. A list of layers, K,N or NAME=K,N or NAME=K,N*COUNT, separated by spaces or
            semicolons: linear layers without bias, each with its own input. Or a Transformers model: a
            config's JSON file, a folder with one, a model type such as "llama" (its default config), or
            "org/name" on the Hugging Face hub (its config is downloaded). This becomes the config's causal
            language model, if there is one.
        config: Which layers, and what update. Layers of a list are called NAME, or linear0, linear1, ...
        batch: Sequences in a batch.
        tokens: Tokens in each sequence.
        dtype: The dtype of the model's weights and activations.
        base: As in `training_budget`.

    Raises:
        BlueprintError: If the spec is none of these, the model cannot be built or takes other inputs than
            token ids, or its forward depends on the values of tensors.
        ImportError: If Transformers is needed and not installed.
        OSError: If the config cannot be read or fetched.
        TypeError: As `apply_lora`.
        ValueError: As `apply_lora`; or if a size is below 1.
    """
    size = _Batch(check_rank(batch, "batch"), check_rank(tokens, "tokens"))
    for name, value in (("batch", batch), ("tokens", tokens), ("r", config.r)):
        if value > _LARGEST:
            raise BlueprintError(f"{name} must be at most {_LARGEST:,}; got {value}")
    build = _from_layers if "," in spec else _from_transformers
    make = build(spec, dtype)
    try:
        with FakeTensorMode():
            model, forward = make(size)
            return training_budget(model, config, forward, base=base)
    except DataDependentOutputException as error:
        raise BlueprintError(
            f"model {spec!r} must compute alike whatever the values are; it asks for one: {error}"
        ) from error
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise BlueprintError(
            f"model, batch and tokens must make tensors that can be counted; {in_short(error)}"
        ) from error


def blueprint_with_lora(spec: str, config: LoRAConfig, dtype: torch.dtype) -> nn.Module:
    """A model with LoRA from its description, for reading shapes: its tensors are fake.

    Args:
        spec: As for `blueprint_budget`.
        config: As for `apply_lora`.
        dtype: The dtype of the model's weights.

    Raises:
        BlueprintError: If the spec is none of these, or the model cannot be built.
        ImportError: As `blueprint_budget`.
        OSError: As `blueprint_budget`.
        TypeError: As `apply_lora`.
        ValueError: As `apply_lora`.
    """
    build = _from_layers if "," in spec else _from_transformers
    with FakeTensorMode():
        model, _ = build(spec, dtype)(_Batch(1, 1))
        return apply_lora(model, config)


_Forward = Callable[[nn.Module], object]
_Maker = Callable[[_Batch], tuple[nn.Module, _Forward]]


def _from_layers(spec: str, dtype: torch.dtype) -> _Maker:
    shapes: list[tuple[str, int, int]] = []
    for place, item in enumerate(re.split(r"[\s;]+", spec.strip())):
        match = _LAYER.fullmatch(item)
        sizes = [int(number) for number in match.groups()[1:] if number] if match else []
        if match is None or 0 in sizes or max(sizes) > _LARGEST or sum(sizes[2:]) > _MOST_LAYERS:
            raise BlueprintError(
                "model must list layers as K,N or NAME=K,N or NAME=K,N*COUNT, in whole numbers from 1 to "
                f"{_LARGEST:,}, COUNT to {_MOST_LAYERS:,}; got {item[:100]!r}"
            )
        shapes += [(match[1] or f"linear{place}", sizes[0], sizes[1])] * int(match[4] or 1)

    def make(size: _Batch) -> tuple[nn.Module, _Forward]:
        model = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(K, N, bias=False, dtype=dtype)}) for name, K, N in shapes
        )
        inputs = [torch.empty(size.rows, size.tokens, K, dtype=dtype) for _, K, _ in shapes]

        def forward(model: nn.Module) -> list[Tensor]:
            layers = (layer for entry in model.children() for layer in entry.children())
            return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

        return model, forward

    return make


def _from_transformers(spec: str, dtype: torch.dtype) -> _Maker:
    try:
        config = find_config(spec)
    except ConfigError as error:
        raise BlueprintError(str(error)) from error
    import transformers
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kind: Any = transformers.AutoModelForCausalLM if known else transformers.AutoModel

    # Transformers' sdpa makes no mask if no row is padded, but to check this it reads values of a tensor.
    transformers.AttentionMaskInterface.register(_UNMASKED, lambda *_, **__: None)
    transformers.AttentionInterface.register(_UNMASKED, sdpa_attention_forward)

    def make(size: _Batch) -> tuple[nn.Module, _Forward]:
        with _told_as(f"model {spec!r} must be one that Transformers can build"):
            model: nn.Module = kind.from_config(config, dtype=dtype, attn_implementation=_UNMASKED)

        def forward(model: nn.Module) -> object:
            ids = torch.zeros(size.rows, size.tokens, dtype=torch.long)
            with _told_as(f"model {spec!r} must take token ids, and {size.tokens} of them"):
                return model(input_ids=ids)

        config.use_cache = False
        return model, forward

    return make


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Any error as a BlueprintError that begins with `what`, but one about values, which fake tensors lack.

    Invalid values in a config, a missing package, and models for images or audio raise errors of many types.
    """
    try:
        yield
    except DataDependentOutputException:
        raise
    except Exception as error:
        raise BlueprintError(f"{what}; {in_short(error)}") from error
