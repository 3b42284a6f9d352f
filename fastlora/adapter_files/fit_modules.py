"""Finds what of a model an adapter on disk holds beside A and B.

That is modules trained in full, rows of tokens, and W of embeddings, which PEFT writes too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from fastlora.adapter_files.adapter_config import AdapterConfig
from fastlora.adapter_files.contents import Contents
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.fit import check_shape
from fastlora.adapter_files.keys import ROWS, plain_key
from fastlora.arguments import adapter_dtype_over
from fastlora.layer.token_rows import CHILD, TokenRows
from fastlora.model.biases import check_one_adapter, kind_of
from fastlora.model.find_layers import lora_layers
from fastlora.model.modules_to_save import check_trainable, inside, saved_modules
from fastlora.model.name_matching import listed, near_names
from fastlora.model.token_rows import Found, find_rows, token_rows, with_rows
from fastlora.model.versions import state_of
from fastlora.model.wrappers import modules_by_name
from fastlora.warning import warn

_TIED: Final = (
    " (ensure_weight_tying is not supported where a module to save is tied: merge the adapter with PEFT)"
)


class FoundModules(NamedTuple):
    """An adapter's modules to save, as found in a model.

    Attributes:
        modules: {path: module}.
        tensors: {key in the file: the model's tensor of that name, of the adapter in use}.
        rows: Rows of tokens, which are among the modules; the model may not have them yet.
        biases: {key in the file: the bias of the model} of those that the adapter trains; among the tensors.
    """

    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    rows: list[Found]
    biases: dict[str, Tensor]

    def of(self, adapter: str) -> dict[str, Tensor]:
        """{key in the file: the tensor of an adapter's version that takes its value}."""
        versions = {
            f"{path}.{key}".lstrip("."): tensor
            for path, module in self.modules.items()
            for key, tensor in state_of(module, adapter).items()
        }
        return versions | self.biases


def modules_to_save(model: nn.Module, contents: Contents) -> FoundModules:
    """The modules of a model that are saved with an adapter, and their tensors.

    If the model has modules to save already, they must be the same ones.

    Raises:
        AdapterError: If there is no such module or tensor, shapes or kinds of dtype differ, a tensor is
            missing, or a module cannot be trained separately from the rest.
    """
    modules = modules_by_name(model)
    plain = dict.fromkeys(key for key in contents.plain if not key.endswith(ROWS))
    paths = list(dict.fromkeys(_saved_path(key, contents.config, modules) for key in plain))
    _check_paths(model, contents, paths)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            check_trainable(model, path, modules[path])
        except ValueError as error:
            raise AdapterError(str(error)) from error
        for key, tensor in state_of(modules[path], "").items():
            tensors[f"{path}.{key}".lstrip(".")] = tensor
    missing = [key for key in tensors if key not in plain]
    if missing:
        raise AdapterError(f"modules_to_save must be whole; the file lacks {listed(missing)}")
    rows = _rows(model, contents)
    found = {path: modules[path] for path in paths}
    for path, each in rows.items():
        tensors[f"{path}{ROWS}"] = each.rows.trainable_tokens_delta
        found[f"{path}.{CHILD}"] = each.rows
    biases = _biases(model, contents)
    tensors |= biases
    for key in contents.beside:
        header = contents.file.headers[plain_key(key)]
        if key not in tensors:
            raise AdapterError(f"modules_to_save must hold the model's tensors alone; {key!r} is none")
        check_shape(key, list(tensors[key].shape), list(header.shape), "shape")
        if tensors[key].is_floating_point() != header.dtype.is_floating_point:
            raise AdapterError(f"{key!r} must be of the kind of {tensors[key].dtype}; it is {header.dtype}")
    return FoundModules(found, tensors, list(rows.values()), biases)


def _biases(model: nn.Module, contents: Contents) -> dict[str, Tensor]:
    """{key in the file: the model's bias} of all biases that the file's config says the adapter trains."""
    if (kind := contents.config.bias) == "none":
        return {}
    known = modules_by_name(model)
    chosen = contents.names if kind == "lora_only" else known
    own = {
        f"{path}.bias".lstrip("."): module._parameters["bias"]
        for path in chosen
        if (module := known.get(path)) is not None and module._parameters.get("bias") is not None
    }
    own = {name: b for name, b in own.items() if not contents.is_inside_one_to_save(name)}
    if further := [name for name in contents.biases if name not in own]:
        raise AdapterError(
            f"biases must be the model's, of layers with LoRA where bias is 'lora_only'; "
            f"{contents.biases[further[0]]!r} is none"
        )
    if lacking := [name for name in own if name not in contents.biases]:
        raise AdapterError(
            f"must hold the biases that were trained, as bias is {kind!r}; it lacks {listed(lacking)} (older "
            "versions of PEFT lost those of layers with LoRA; set bias to 'none' where the base's are meant)"
        )
    return {key: own[name] for name, key in contents.biases.items()}  # type: ignore[misc]


def _check_paths(model: nn.Module, contents: Contents, paths: list[str]) -> None:
    """Raise AdapterError if a module of these paths holds a layer of the file, or the model saves others."""
    for path, layer in itertools.product(paths, contents.names):
        if f"{layer}.".startswith(f"{path}."):
            raise AdapterError(f"{path!r} must have no LoRA layers, as it is trained in full; got {layer!r}")
    known = [path for path, module in saved_modules(model) if not isinstance(module, TokenRows)]
    if known and paths and set(known) != set(paths):
        raise AdapterError(
            f"modules_to_save must be the model's, {listed(known)}; the file has {listed(paths)}"
        )


def _rows(model: nn.Module, contents: Contents) -> dict[str, Found]:
    """{path: rows that the file has}, of which the model need have none yet."""
    found: dict[str, Found] = {}
    trained = inside(each for _, each in saved_modules(model) if not isinstance(each, TokenRows))
    for path, tokens in contents.tokens.items():
        dtype = adapter_dtype_over(contents.plain[f"{path}{ROWS}"].dtype)
        try:
            (found[path],) = find_rows(model, {path: tokens}, dtype, trained)
        except (TypeError, ValueError) as error:
            raise AdapterError(str(error)) from error
    taken, modules = with_rows(model, list(found.values())), modules_by_name(model)
    if both := [layer for layer in contents.names if modules.get(layer) in taken]:
        raise AdapterError(f"LoRA and rows of tokens must not be of one weight; both are of {listed(both)}")
    return found


def check_rows(model: nn.Module, contents: Contents) -> None:
    """Raise AdapterError if a file lacks rows of tokens that an adapter to be filled has."""
    if lacking := [name for name, _, _ in token_rows(model) if name not in contents.tokens]:
        raise AdapterError(f"must hold the rows of tokens of {listed(lacking)}, as the model's adapter does")


def _saved_path(key: str, config: AdapterConfig, modules: Mapping[str, nn.Module]) -> str:
    """The outermost module that holds the tensor and that one of the names matches, by PEFT's rule."""
    names, ties, parts = config.modules_to_save, config.ties, key.split(".")
    for length in range(len(parts)):
        path = ".".join(parts[:length])
        if path in modules and any(path.endswith(name) for name in names):
            return path
    raise AdapterError(
        f"{key!r} must belong to a module that modules_to_save names, {listed(names)}"
        f"{_TIED if ties else near_names(key, modules)}"
    )


def check_biases(model: nn.Module, contents: Contents, name: str, known: bool) -> None:
    """Raise AdapterError unless the adapter can train what the file says; warn if others change too."""
    kind = contents.config.bias
    if known and kind != kind_of(model, name):
        raise AdapterError(
            f"bias must be {kind_of(model, name)!r}, as adapter {name!r} of the model has it; the file has "
            f"{kind!r}"
        )
    try:
        check_one_adapter(model, name, kind)
    except ValueError as error:
        raise AdapterError(str(error)) from error
    if contents.biases and not known and any(lora_layers(model)):
        warn(
            f"the biases that came with adapter {name!r} (bias={kind!r}) take the place of the model's, for "
            "all its adapters"
        )


def check_base(model: nn.Module, contents: Contents) -> None:
    """Raise AdapterError if the file holds another W of an embedding than the model's.

    PEFT writes the W of embeddings that have LoRA, and of the output layer, beside A and B.
    """
    own = {name.replace(".base_layer.", "."): name for name in contents.base}
    tensors = {
        f"{path}.{key}".lstrip("."): value
        for path, module in modules_by_name(model).items()
        for key, value in module._parameters.items()
        if value is not None
    }
    for name, saved_as in own.items():
        wanted = tensors.get(name)
        found = None
        if wanted is not None and contents.file.headers[plain_key(saved_as)].shape == tuple(wanted.shape):
            found = contents.file.read(plain_key(saved_as), wanted.device, wanted.dtype)
        if wanted is None or found is None or not torch.equal(found, wanted):
            raise AdapterError(
                f"{saved_as!r} must be the model's own, as PEFT writes it beside LoRA on its layer; it "
                "differs (it was resized or trained: name its module in modules_to_save)"
            )
