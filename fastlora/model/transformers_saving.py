"""`save_pretrained` of Transformers models with LoRA: saves adapters too, and guards against misreading.

From a directory with a model's config.json, Transformers loads that model. It drops all LoRA keys as
unexpected, and returns the untrained base. Without a config.json, a model class uses its default config,
which is that of a real model. So the config.json written here names a weights file that does not exist:
loading fails at once, with a message on what to load instead.

This does not help if the caller passes a config. With PEFT installed, the adapter is then loaded too; without
it, Transformers loads the base and reports all LoRA keys as unexpected. The full state is saved as well,
because Trainer resumes from it. It has the names that the model has in memory: under those of the published
files, which mixtures and models for images have, Trainer would find neither updates nor trained modules.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastlora.layer.commits import Commit, exclusive
from fastlora.model.find_layers import lora_layers
from fastlora.model.transformers_resizing import NAME as RESIZE
from fastlora.model.transformers_resizing import ResizeTokenEmbeddings

_NAME = "save_pretrained"

# Transformers' Trainer takes a quantized model only if this says that it has adapters. While it is saved, the
# attribute is away: `save_pretrained` would look for PEFT's.
_HAS_ADAPTERS = "_hf_peft_config_loaded"

# Transformers reads the file `transformers_weights` instead of model.safetensors.
_NO_MODEL = {"transformers_weights": "LoRA, not a model: load the base, then adapter_config.json.safetensors"}

# Transformers' option to save under the names of the published files.
_PUBLISHED_NAMES = "save_original_format"

# Called with (model, directory, state_dict, is_main_process). The package puts adapter_files' writer here,
# which this module may not import.
writers: list[Callable[[nn.Module, Path, Mapping[str, Tensor] | None, bool], None]] = []


class SavePretrained:
    """Replaces a model's `save_pretrained`, as an attribute that is copied and pickled with the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @exclusive
    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> Any:
        """As the class's `save_pretrained`, but saves the adapters too, and the config.json described above.

        Raises:
            ValueError: If push_to_hub is asked for, or the directory is the base model's own.
        """
        model: Any = self.model
        original = getattr(type(model), _NAME)
        if not any(True for _ in lora_layers(model)):
            return original(
                model, save_directory, is_main_process, state_dict, push_to_hub=push_to_hub, **options
            )
        if push_to_hub:
            raise ValueError(
                "push_to_hub must be left out for a model with LoRA layers (fastlora.push_to_hub(model, "
                "repo_id) uploads its adapters; remove_lora(model, merge=True) gives a plain model)"
            )
        directory = Path(save_directory)
        base = getattr(model, "name_or_path", None)
        if base and directory.is_dir() and Path(base).is_dir() and directory.samefile(base):
            raise ValueError(
                f"save_directory must not be the base model's own, {str(directory)!r}: the adapter needs it"
            )
        if is_main_process:
            directory.mkdir(parents=True, exist_ok=True)
        for write in writers:
            write(model, directory, state_dict, is_main_process)
        if _takes(original, _PUBLISHED_NAMES):
            options.setdefault(_PUBLISHED_NAMES, False)
        config, own = vars(model.config), vars(model)
        told = own.pop(_HAS_ADAPTERS, None)
        config[_NAME] = _write_no_model
        try:
            return original(model, save_directory, is_main_process, state_dict, **options)
        finally:
            del config[_NAME]
            if told is not None:
                own[_HAS_ADAPTERS] = told


def _takes(function: Callable[..., Any], option: str) -> bool:
    parameters = inspect.signature(function).parameters
    return option in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _write_no_model(directory: str | os.PathLike[str], *_: Any, **__: Any) -> None:
    """Write the config.json described above, in place of a config's `save_pretrained`."""
    text = json.dumps(_NO_MODEL, indent=2) + "\n"
    (Path(directory) / "config.json").write_text(text, encoding="utf-8")


def install(model: nn.Module, changing: Commit) -> None:
    """Give each Transformers model with LoRA layers, this one or any inside, both methods of ours."""
    for found in _models(model):
        if any(True for _ in lora_layers(found)):
            changing.put(vars(found), _NAME, SavePretrained(found))
            changing.put(vars(found), RESIZE, ResizeTokenEmbeddings(found))
            if getattr(found, "is_quantized", False):
                changing.put(vars(found), _HAS_ADAPTERS, True)


def uninstall(model: nn.Module, changing: Commit) -> None:
    """Remove them, so that the class's methods are used again."""
    for found in _models(model):
        if isinstance(vars(found).get(_NAME), SavePretrained):
            changing.drop(vars(found), _NAME)
            changing.drop(vars(found), _HAS_ADAPTERS)
            changing.drop(vars(found), RESIZE)


def _models(model: nn.Module) -> Iterator[nn.Module]:
    """The Transformers models in a model; none if Transformers was not imported."""
    package = sys.modules.get("transformers.modeling_utils")
    if package is None:
        return iter(())
    return (module for module in model.modules() if isinstance(module, package.PreTrainedModel))
