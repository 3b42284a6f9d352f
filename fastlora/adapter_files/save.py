"""Writes adapters in PEFT's format: each into a directory, or one into a single file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from fastlora.adapter_files.adapter_config import CONFIG_FILE, digest
from fastlora.adapter_files.collect import CollectedAdapter, collect
from fastlora.adapter_files.drafts import write_together
from fastlora.adapter_files.errors import AdapterError
from fastlora.adapter_files.layout import serialized
from fastlora.adapter_files.opening import DIGEST_KEY, METADATA_KEY, TENSOR_FILE
from fastlora.arguments import check_choice, check_path, check_text, shown
from fastlora.layer.adapter import DEFAULT
from fastlora.layer.commits import exclusive
from fastlora.model.switching import active_adapter, adapter_names
from fastlora.warning import warn


@exclusive
def save_pretrained(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapters: Sequence[str] | None = None,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write adapters as PEFT does: adapter_config.json and adapter_model.safetensors.

    The adapter "default" goes into the directory itself, any other one into a sub-directory of its name. Each
    file is replaced atomically, and nothing is written before everything is checked. A file that is replaced
    keeps its permissions, and a link stays a link. The tensor file holds a digest of the config, so that a
    load during a save gets the old or the new adapter, never a mix. Merged and disabled layers are saved like
    any other. After `initialize`, an update is written relative to the W from before, as plain LoRA of twice
    the rank. Modules to save are written with each adapter, as in PEFT. The format has one dropout for all
    layers; if they differ, the largest is written, with a warning.

    If parameters are DTensors (FSDP2, tensor parallel), all processes must call it: adapters are gathered,
    and process 0 writes. If each process has full parameters, every process that calls it writes.

    Args:
        model: A model with LoRA layers. Wrappers (of torch.compile, activation checkpointing, FSDP) do not
            appear in the names written.
        directory: Where to write; it is created if needed, and files of these names are replaced.
        adapters: Names of the adapters to write; None means all.
        base_model_name_or_path: For the config; None means the name that a Transformers model has.
        task_type: For the config, such as "CAUSAL_LM". None means the task that `LoRAConfig` named; else the
            task of the model's class, if its head is saved.

    Raises:
        AdapterError: If a tensor holds NaN or infinity.
        TypeError: If `model` is not an nn.Module, or `directory` is no path.
        ValueError: If there is no LoRA layer or no such adapter, or `adapters` is empty.
        OSError: If a file cannot be written.
    """
    check_path("directory", directory)
    check_text("base_model_name_or_path", base_model_name_or_path)
    chosen = names = adapter_names(model)
    if adapters is not None:
        if not isinstance(adapters, Sequence) or isinstance(adapters, (str, bytes)) or not adapters:
            raise ValueError(f"adapters must be a sequence of names, or None for all; got {shown(adapters)}")
        chosen = tuple(check_choice("adapters", name, names) for name in adapters)
    content = {
        name: collect(model, name, base_model_name_or_path=base_model_name_or_path, task_type=task_type)
        for name in chosen
    }
    _write(directory, content)


def write_next_to_checkpoint(
    model: nn.Module, directory: Path, state: Mapping[str, Tensor] | None, is_main_process: bool
) -> None:
    """Write all adapters next to a checkpoint, for the `save_pretrained` of a Transformers model.

    A failure only warns, because the checkpoint has everything.

    Args:
        model: As in `save_pretrained`.
        directory: The directory of the checkpoint.
        state: The values to write, such as an average of the weights, or the gathered state. If it is given,
            nothing is gathered here, because other processes may not take part.
        is_main_process: Whether this process writes.
    """
    try:
        content = {name: collect(model, name, state=state) for name in adapter_names(model)}
        if is_main_process:
            _write(directory, content)
    except (AdapterError, ImportError, ValueError) as error:
        if is_main_process:
            for stale in (CONFIG_FILE, TENSOR_FILE):
                (directory / stale).unlink(missing_ok=True)
        warn(
            f"{directory} holds the whole state, and no adapter that from_pretrained could read: {error}",
        )


def _write(directory: str | os.PathLike[str], content: Mapping[str, CollectedAdapter]) -> None:
    written = {
        name: serialized(adapter.tensors, {DIGEST_KEY: digest(adapter.config)})
        for name, adapter in content.items()
    }
    files: list[tuple[Path, bytes]] = []
    for name, adapter in content.items():
        if not adapter.writes:
            continue
        folder = Path(directory) if name == DEFAULT else Path(directory) / name
        folder.mkdir(parents=True, exist_ok=True)
        # The config last: an old config next to new tensors tells a load that a save was interrupted.
        files += [(folder / TENSOR_FILE, written[name]), (folder / CONFIG_FILE, adapter.config.encode())]
    write_together(files)


@exclusive
def save_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the adapter in use to one safetensors file: `save_pretrained`'s tensors, with its config inside.

    Args:
        model: As in `save_pretrained`.
        path: Where to write; an existing file is replaced.

    Raises:
        AdapterError: As in `save_pretrained`.
        TypeError: If `model` is not an nn.Module, or `path` is no path.
        ValueError: If there is no LoRA layer.
        OSError: If the file cannot be written.
    """
    check_path("path", path)
    adapter = collect(model, active_adapter(model))
    content = serialized(adapter.tensors, {METADATA_KEY: adapter.config})
    if adapter.writes:
        write_together([(path, content)])
