"""The `save_pretrained` of Transformers' models with LoRA: the adapter too, and no plain config.json.

Transformers reads a directory with a model's config.json as that model, drops every lora key as unexpected
and returns the untrained base; without any config.json a model's class takes its default one, which is that
of a real model. So the config.json here names a file of weights that does not exist: reading fails at once
and says what to read instead. Only a config of the caller's own hides that: with PEFT installed the adapter
is then read too; without, Transformers reads the base and reports every lora key as unexpected. The whole
state stays beside the adapter, as Trainer resumes from that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastlora.layer.commits import Commit, exclusive
from fastlora.model.find_layers import lora_layers

_NAME = "save_pretrained"

# `transformers_weights` is the file that Transformers reads in place of model.safetensors.
_NO_MODEL = {"transformers_weights": "LoRA, not a model: load the base, then adapter_config.json.safetensors"}

# (model, directory, state_dict, is_main_process); `pretrained`, which lies above, adds its own.
writers: list[Callable[[nn.Module, Path, Mapping[str, Tensor] | None, bool], None]] = []


class SavePretrained:
    """Stands in a model for its class's `save_pretrained`; it is copied and pickled with the model."""

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
        """As the class's, whose arguments it takes; with the adapters, and a config.json that is none.

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
        config = vars(model.config)
        config[_NAME] = _write_no_model
        try:
            return original(model, save_directory, is_main_process, state_dict, **options)
        finally:
            del config[_NAME]


def _write_no_model(directory: str | os.PathLike[str], *_: Any, **__: Any) -> None:
    """In place of a config's `save_pretrained`."""
    text = json.dumps(_NO_MODEL, indent=2) + "\n"
    (Path(directory) / "config.json").write_text(text, encoding="utf-8")


def install(model: nn.Module, changing: Commit) -> None:
    """Have each Transformers model that has LoRA layers, here or further inside, save its adapters too."""
    for found in _models(model):
        if any(True for _ in lora_layers(found)):
            changing.put(vars(found), _NAME, SavePretrained(found))


def uninstall(model: nn.Module, changing: Commit) -> None:
    """Give the models their class's `save_pretrained` back."""
    for found in _models(model):
        if isinstance(vars(found).get(_NAME), SavePretrained):
            changing.drop(vars(found), _NAME)


def _models(model: nn.Module) -> Iterator[nn.Module]:
    """The Transformers models in a model; none exists where Transformers was not imported."""
    package = sys.modules.get("transformers.modeling_utils")
    if package is None:
        return iter(())
    return (module for module in model.modules() if isinstance(module, package.PreTrainedModel))
