"""Finds a Transformers config from a file, a folder, a model type, or the name of a model on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
_EXAMPLES: Final = ("llama", "qwen3", "gemma3_text", "mistral", "bert")

# Seconds that the hub has for its first answer.
_PATIENCE: Final = 10


class ConfigError(ValueError):
    """The name does not lead to a Transformers config, or the file holds none."""


def find_config(spec: str) -> Any:
    """The config from a JSON file, a folder with config.json, a model type, or "org/name" on the hub.

    No code that comes with a model is run. The hub is asked once, without retries.

    Raises:
        ConfigError: If `spec` is none of these, or names something that is not a config of Transformers.
        ImportError: If Transformers is not installed.
        OSError: If a file cannot be read, or the hub has no such config or cannot be reached.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'a Transformers config needs transformers: pip install "fastlora-triton[peers]"'
        ) from error
    auto: Any = transformers.AutoConfig
    types = transformers.CONFIG_MAPPING
    path = Path(spec)
    if spec and _exists(path):
        return _read(auto, types, spec, path)
    if spec in types:
        return auto.for_model(spec)
    if _HUB_NAME.fullmatch(spec) and not spec.startswith(".") and path.suffix != ".json":
        return _fetch(auto, spec)
    if "/" in spec or "\\" in spec or path.suffix == ".json":
        raise ConfigError(f"model must be a file or folder that exists; there is no {spec[:300]!r}")
    raise ConfigError(
        "model must be a list of layers, a config's JSON file or folder, a model type, or a name on the hub "
        f'as "org/name"; {spec[:300]!r} is none of them. {_near(spec, types)}'
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the name is too long, or contains a null character
        return False


def _near(word: str, types: Iterable[str]) -> str:
    known = sorted(types)
    close = (
        get_close_matches(word.lower()[:100], known, n=5)
        or [name for name in known if len(word) > 1 and name.startswith(word.lower())][:5]
    )
    if close:
        return f"Near it among the {len(known)} types: {', '.join(close)}"
    return f"There are {len(known)} types, such as {', '.join(_EXAMPLES)}"


def _read(auto: Any, types: Iterable[str], spec: str, path: Path) -> Any:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        missing = "has no config.json" if path.is_dir() else "is no regular file"
        raise ConfigError(
            f"model must be a config's JSON file or a folder with config.json; {spec!r} {missing}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} must be JSON; {error}") from error
    kind: Any = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in types:
        near = f". {_near(kind, types)}" if isinstance(kind, str) else ""
        raise ConfigError(
            f"{str(file)!r} must be a Transformers config with a model_type that it knows; "
            f"got {kind!r:.100}{near}"
        )
    try:
        return auto.from_pretrained(str(path), trust_remote_code=False)
    except OSError:
        raise
    # On invalid values, config classes raise errors of many types.
    except Exception as error:
        raise ConfigError(f"{str(file)!r} must be a sound {kind} config; {in_short(error)}") from error


def _fetch(auto: Any, name: str) -> Any:
    """The config of a model on the hub; if the hub cannot be reached, the cached one."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    away: Exception | None = None
    try:
        # This asks the hub once. from_pretrained alone asks six times in half a minute before it gives up.
        HfApi().model_info(name, timeout=_PATIENCE)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            raise OSError(
                f"model {name!r} must be on the hub, and open to you (`hf auth login`); it answered {status}"
            ) from error
        away = error
    # Without a connection, requests or httpx raise errors of their own types, depending on the version.
    except Exception as error:
        away = error
    try:
        return auto.from_pretrained(name, local_files_only=away is not None, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if away is None:
            raise ConfigError(
                f"model {name!r} must have a config that Transformers knows; {in_short(error)}"
            ) from error
        raise OSError(
            f"model {name!r} must be in the hub's cache, as the hub cannot be reached ({in_short(away)})"
        ) from away


def in_short(error: BaseException) -> str:
    """The message of another library's error, in one line of at most 300 characters."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"
