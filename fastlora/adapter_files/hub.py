"""Adapters on the Hugging Face hub.

Tokens are passed to huggingface_hub and nowhere else. Without one, it uses the token of `hf auth login`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from torch import nn

from fastlora.adapter_files.adapter_config import CONFIG_FILE
from fastlora.adapter_files.load import load_pretrained
from fastlora.adapter_files.opening import TENSOR_FILE
from fastlora.adapter_files.save import save_pretrained
from fastlora.arguments import check_bool, check_path, check_text, shown
from fastlora.layer.adapter import DEFAULT
from fastlora.model.find_layers import check_model

_CARD: Final = "README.md"


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    adapters: Sequence[str] | None = None,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload LoRA adapter",
    token: str | bool | None = None,
) -> str:
    """Upload adapters to the hub, in the layout of `save_pretrained`, as one commit.

    The repository is created if it does not exist. It gets a model card if it has none.

    Args:
        model: As in `save_pretrained`.
        repo_id: "user/name".
        adapters: As in `save_pretrained`.
        base_model_name_or_path: As in `save_pretrained`.
        task_type: As in `save_pretrained`.
        private: Whether a new repository is private; None means the hub's default.
        revision: The branch; None means the main one.
        commit_message: The message of the commit.
        token: A token for huggingface_hub.

    Returns:
        The URL of the commit.

    Raises:
        AdapterError: As by `save_pretrained`.
        TypeError: If `repo_id` is not a string.
        ValueError: As by `save_pretrained`.
        ImportError: If huggingface_hub is not installed.
        huggingface_hub.errors.HfHubHTTPError: If the hub refuses.
    """
    hub = _import_hub()
    if check_text("repo_id", repo_id) is None:
        raise TypeError("repo_id must be 'user/name'; got None")
    with TemporaryDirectory() as made:
        folder = Path(made)
        save_pretrained(
            model,
            folder,
            adapters=adapters,
            base_model_name_or_path=base_model_name_or_path,
            task_type=task_type,
        )
        api = hub.HfApi(token=token, library_name="fastlora")
        api.create_repo(repo_id, private=private, exist_ok=True)
        if not api.file_exists(repo_id, _CARD, revision=revision):
            (folder / _CARD).write_text(_card(folder), encoding="utf-8")
        operations = [
            hub.CommitOperationAdd(path.relative_to(folder).as_posix(), str(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    return str(commit.commit_url)


def from_pretrained(
    model: nn.Module,
    repo_id: str | os.PathLike[str],
    *,
    name: str = DEFAULT,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Load an adapter from the hub or its local cache into a model, as `load_pretrained` does from a folder.

    Only adapter_config.json and adapter_model.safetensors are downloaded, both from the same commit.

    Args:
        model: As in `load_pretrained`.
        repo_id: "user/name", or a folder on this machine. If such a folder exists, the hub is not asked.
        name: As in `load_pretrained`.
        subfolder: The adapter's folder in the repository.
        revision: Branch, tag or commit; None means the main branch. Only a commit can never change.
        token: A token for huggingface_hub.
        cache_dir: The folder of the cache; None means huggingface_hub's default.
        local_files_only: Whether to look in the cache only.

    Returns:
        The model; the new layer if the model itself is a plain nn.Linear.

    Raises:
        AdapterError: As by `load_pretrained`.
        TypeError: If `repo_id` is no path, or `subfolder` or `revision` no string.
        ValueError: If a name is invalid, or `subfolder` leads out of the repository.
        FileNotFoundError: If the repository has no adapter there, or `repo_id` is a path that does not exist.
        ImportError: If huggingface_hub is not installed.
        huggingface_hub.errors.HfHubHTTPError: If the hub refuses.
    """
    check_model(model)
    check_path("repo_id", repo_id)
    if not isinstance(subfolder, str) or "\0" in subfolder:
        raise TypeError(f"subfolder must be a string, the path of a folder; got {shown(subfolder)}")
    check_text("revision", revision)
    if cache_dir is not None:
        check_path("cache_dir", cache_dir)
    check_bool(local_files_only, "local_files_only")
    inside = PurePosixPath(subfolder)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"subfolder must lie in the repository; got {subfolder!r}")
    local = _local_folder(repo_id)
    if local is not None:
        return load_pretrained(model, local / inside, name=name)
    snapshot = _import_hub().snapshot_download(
        repo_id,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        library_name="fastlora",
        allow_patterns=[str(inside / CONFIG_FILE), str(inside / TENSOR_FILE)],
    )
    return load_pretrained(model, Path(snapshot) / inside, name=name)


def _local_folder(repo_id: str | os.PathLike[str]) -> Path | None:
    """The local folder that `repo_id` names; None if it names a repository.

    Raises:
        OSError: If it can only be a path, and there is no such folder.
    """
    path = Path(repo_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise NotADirectoryError(f"repo_id must be a repository or a folder; {path} is a file (load_adapter)")
    text = os.fspath(repo_id)
    if (
        not isinstance(repo_id, str)
        or text.startswith((".", "~", "/"))
        or "\\" in text
        or text.count("/") > 1
    ):
        raise FileNotFoundError(
            f"repo_id must be 'user/name' on the hub, or a folder that exists; {text[:200]!r} does not"
        )
    return None


def _card(folder: Path) -> str:
    """A model card that tells the hub the base model and the library. A JSON string is valid YAML too."""
    config = json.loads(next(folder.rglob(CONFIG_FILE)).read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    lines = ["---", "library_name: peft", "tags:", "- lora", "- fastlora"]
    lines += [f"base_model: {json.dumps(base)}"] if base else []
    return "\n".join([*lines, "---", "", "A LoRA adapter in PEFT's format, written by fastlora.", ""])


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f'the hub needs {error.name}: pip install "fastlora-triton[hub]"', name=error.name
        ) from error
    return huggingface_hub
