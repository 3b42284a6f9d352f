"""What an adapter on disk holds: its layers, with their options, and the tensors of modules to save.

That config and tensors match is checked before a tensor is read. No model is involved here; `load` fits the
contents to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple

import torch

from fastlora.adapter_files.adapter_config import CONFIG_FILE, AdapterConfig
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.keys import ROWS, layer_keys, plain_key, split, third_key
from fastlora.adapter_files.layout import FLOATS, Header
from fastlora.adapter_files.tensors import TensorFile
from fastlora.layer.adapter import Options

_OF_EMBEDDING: Final = {"embedding A", "embedding B"}
# Under bias="all" PEFT writes these modules' biases too, beside those of a module to save.
_COPIES: Final = ("original_module", "modules_to_save")


class LayerHeader(NamedTuple):
    """What an adapter file says about one layer.

    Attributes:
        options: The update's options.
        in_features: K.
        out_features: N.
        dtype: The dtype of A and B.
        experts: Number of experts whose A and B are stacked in it; 0 of a linear layer.
        window: [in_channels, *kernel] of a convolution, where in_features is their product; else empty.
    """

    options: Options
    in_features: int
    out_features: int
    dtype: torch.dtype
    experts: int = 0
    window: tuple[int, ...] = ()


class Contents:
    """An open adapter.

    Attributes:
        config: Its config.
        file: Its tensors.
        names: The layers that have A and B in it.
        plain: {key without prefix: Header} of the tensors of modules to save, and of rows of tokens.
        tokens: {name of a module: the tokens that it has rows for}.
        embeddings: Those of `names` that are embeddings.
        base: Keys without prefix of W of embeddings and output layers, which PEFT writes beside LoRA on them;
            the model has it.
        biases: {name of a bias in the model: key without prefix} of those that the adapter trains.
    """

    def __init__(self, config: AdapterConfig, file: TensorFile) -> None:
        self.config, self.file = config, file
        self._saved_as: Mapping[str, str] = {}
        self._experts: Mapping[str, int] = {}
        self._sort()

    def _sort(self) -> None:
        names: dict[str, set[str]] = {}
        self.plain: dict[str, Header] = {}
        for key, header in self.file.headers.items():
            layer, letter = split(key, self.file.headers, self.config.modules_to_save)
            if letter:
                names.setdefault(layer, set()).add(letter)
            else:
                self.plain[layer] = header
        self._sort_biases()
        self.embeddings = {layer for layer, letters in names.items() if letters == _OF_EMBEDDING}
        names |= {layer: {"A", "B"} for layer in self.embeddings}
        rows = [name for name in self.plain if name.endswith(ROWS)]
        self.base = [
            name
            for name in self.plain
            if (self.embeddings or name.partition(".base_layer.")[0] in names)
            and name not in rows
            and not self.is_inside_one_to_save(name)
        ]
        for name in self.base:
            del self.plain[name]
        self._check(names)
        self.names = tuple(names)
        self.tokens = {name.removesuffix(ROWS): self._tokens_of(name) for name in rows}

    def _sort_biases(self) -> None:
        """Take the biases that the adapter trains, and what PEFT writes beside them, out of `plain`."""
        self.biases: dict[str, str] = {}
        for name in list(self.plain) if self.config.bias != "none" else ():
            *path, slot = name.split(".")
            if slot != "bias":
                continue
            if not self.is_inside_one_to_save(name):
                own = path[:-1] if path[-1:] == ["base_layer"] else path
                self.biases[".".join([*own, slot])] = name
            elif path[-1] not in _COPIES:
                continue
            del self.plain[name]

    @property
    def beside(self) -> tuple[str, ...]:
        """The keys without prefix of all tensors that are no layer's, but for `base`."""
        return (*self.plain, *self.biases.values())

    def _check(self, names: Mapping[str, set[str]]) -> None:
        """Raise unless each layer has the tensors of one update, and all others belong to modules to save.

        Args:
            names: {layer: the letters of its tensors}, as `split` calls them; A and B of an embedding.
        """
        for name in self.plain:
            if ("lora_" in name or ".base_layer." in name) and not self._is_to_save(name):
                raise AdapterError(f"{plain_key(name)!r} is no tensor of plain LoRA, and not supported")
        alone = [layer for layer, letters in names.items() if not letters >= {"A", "B"}]
        if alone:
            raise AdapterError(f"each layer must have A and B; {alone[0]!r} has one of them")
        both = [layer for layer, letters in names.items() if letters & _OF_EMBEDDING]
        if both:
            raise AdapterError(f"{both[0]!r} must be a linear layer or an embedding; it has tensors of both")
        for letter, key, wanted in (
            ("m", "use_dora", self.config.dora),
            ("b", "lora_bias", self.config.lora_bias),
        ):
            unlike = [layer for layer, letters in names.items() if (letter in letters) != wanted]
            if unlike:
                found = "has none" if wanted else "has one"
                what = "lora_magnitude_vector" if letter == "m" else "lora_B.bias"
                raise AdapterError(
                    f"each layer must have a {what} if {key} is True, else none; it is {wanted}, and "
                    f"{unlike[0]!r} {found}"
                )
        if not names:
            raise AdapterError("must hold A and B of at least one layer; it holds none")
        others = [name for name in self.plain if not name.endswith(ROWS)]
        if others and not self.config.modules_to_save:
            raise AdapterError(f"{others[0]!r} must belong to modules_to_save, which is empty")
        if self.config.trainable_token_indices and len(others) == len(self.plain):
            raise AdapterError("must hold the rows that trainable_token_indices names; it holds none")

    def _tokens_of(self, key: str) -> Sequence[int]:
        """The tokens whose rows a tensor holds, by the config, where PEFT's rule matches ends of names."""
        named = self.config.trainable_token_indices or {}
        module, shape = key.removesuffix(ROWS), list(self.plain[key].shape)
        if isinstance(named, Mapping):
            named = next((tokens for name, tokens in named.items() if module.endswith(name)), ())
        if len(shape) != 2 or shape[0] != len(named):
            raise AdapterError(
                f"{key!r} must have a row for each token of trainable_token_indices, [{len(named)}, K]; got "
                f"{shape}"
            )
        return named

    def is_inside_one_to_save(self, name: str) -> bool:
        """Whether a tensor, or the module of this name, lies inside a module to save."""
        return any(f".{module}." in f".{name}" for module in self.config.modules_to_save)

    def keys_of(self, layer: str) -> tuple[str, str]:
        """The keys of A and B of a layer."""
        return layer_keys(layer, embedding=layer in self.embeddings)

    def _is_to_save(self, name: str) -> bool:
        """Whether the tensor belongs to a module to save whose name looks like LoRA's: "lora_head", say."""
        parts = name.split(".")
        around = (".".join(parts[:length]) for length in range(1, len(parts)))
        return any(module.endswith(self.config.modules_to_save) for module in around)

    @cached_property
    def layers(self) -> dict[str, LayerHeader]:
        """{layer: LayerHeader}. Check the names first, as this matches them with the config's patterns.

        Raises:
            AdapterError: If A, B or a third tensor of a layer has another shape or dtype than the config has.
        """
        try:
            return {layer: self._layer(layer) for layer in self.names}
        except AdapterError:
            raise
        except ValueError as error:
            raise AdapterError(f"{CONFIG_FILE}: {error}") from error

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename the layers and the tensors of modules to save, given {name: new name} for all of them.

        Patterns still match the old names, for which they were written.
        """
        self._saved_as = {new: self._saved_as.get(old, old) for old, new in names.items()}
        self._rename(names)

    def name_experts(self, names: Mapping[str, str], experts: Mapping[str, int]) -> None:
        """Give the layers of experts the names of the parameters that they adapt, which patterns match.

        Args:
            names: {name: new name} of every layer and tensor of a module to save.
            experts: {new name: number of experts} of the layers of experts.
        """
        self._experts = experts
        self._rename(names)

    def _rename(self, names: Mapping[str, str]) -> None:
        keys: dict[str, str] = {}
        for layer in self.names:
            kind = {"embedding": layer in self.embeddings}
            keys |= zip(layer_keys(layer, **kind), layer_keys(names[layer], **kind), strict=True)
            if third := self.config.third:
                keys[third_key(layer, third)] = third_key(names[layer], third)
        keys |= {plain_key(name): plain_key(names[name]) for name in self.beside}
        keys |= {plain_key(name): plain_key(name) for name in self.base}
        self.file.rename(keys)
        self._sort()

    def _layer(self, name: str) -> LayerHeader:
        A, B = (self.file.headers[key] for key in self.keys_of(name))
        config, saved_as = self.config, self._saved_as.get(name, name)
        r, experts = config.rank(saved_as), self._experts.get(name, 0)
        ranks = r * max(experts, 1)
        window, of_one = tuple(A.shape[1:]), all(size == 1 for size in B.shape[2:])
        fits = len(A.shape) == len(B.shape) in ((2,) if experts else (2, 3, 4, 5)) and of_one
        if not fits or A.shape[0] != ranks or B.shape[1] != ranks:
            each = f", of {experts} experts" if experts else ""
            raise AdapterError(
                f"A and B of {name!r} must be [{ranks}, K] and [N, {ranks}]{each}; got {list(A.shape)}, "
                f"{list(B.shape)}"
            )
        if A.dtype != B.dtype or A.dtype not in FLOATS.values():
            raise AdapterError(
                f"A and B of {name!r} must have one dtype of {', '.join(FLOATS)}; got {A.dtype}, {B.dtype}"
            )
        if config.third:
            self._check_third(third_key(name, config.third), B.shape[0])
        alpha = config.alpha_of(saved_as)
        options = Options(r, alpha, config.dropout, config.rslora, config.init, config.dora, config.lora_bias)
        window = window if len(window) > 1 else ()
        return LayerHeader(options, math.prod(A.shape[1:]), B.shape[0], A.dtype, experts, window)

    def _check_third(self, key: str, N: int) -> None:
        third = self.file.headers[key]
        if list(third.shape) != [N] or third.dtype not in FLOATS.values():
            raise AdapterError(
                f"{key!r} must be [{N}] in one of {', '.join(FLOATS)}; got {list(third.shape)} in "
                f"{third.dtype}"
            )
