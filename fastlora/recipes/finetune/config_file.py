"""Reads `--config`: a YAML file of options under their own names, or one of the recipes that ship."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from fastlora.accounting.transformers_config import in_short

_SHIPPED: Final = Path(__file__).parent / "configs"
_HERE: Final = "{recipes}"


class ConfigFileError(ValueError):
    """The file is missing, is no YAML, or has a name that is no option; the message names the line."""


def shipped() -> list[str]:
    """The names of the recipes that ship."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def read_config(spec: str, options: Collection[str]) -> dict[str, Any]:
    """{option: value} from a file, or from a recipe that ships.

    In a recipe that ships, `{recipes}` is the folder of the data that ship.

    Args:
        spec: The file's path, or the recipe's name.
        options: The names that the command knows; in the file, - may stand for _.

    Raises:
        ConfigFileError: If there is no such file, or it is unsound.
    """
    import yaml

    path = _path_of(spec)
    try:
        loader: Any = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path} must be YAML; {in_short(error)}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigFileError(f"{path} must hold options, as `model: NAME`, a line each")
    found: dict[str, Any] = {}
    for key, value in node.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_")
        if name not in options:
            near = get_close_matches(name, options, n=1)
            raise ConfigFileError(
                f"{place}: {key.value!r} is no option" + (f"; near it: {near[0]}" if near else "")
            )
        if name in found:
            raise ConfigFileError(f"{place}: {key.value!r} is there twice")
        if not isinstance(value, yaml.ScalarNode):
            raise ConfigFileError(f"{place}: {key.value!r} must be one value")
        found[name] = loader.construct_object(value)
    return _with_shipped_data(found) if path.parent == _SHIPPED else found


def _path_of(spec: str) -> Path:
    path = Path(spec)
    if not path.is_file() and spec in shipped():
        path = _SHIPPED / f"{spec}.yaml"
    if not path.is_file():
        raise ConfigFileError(
            f"config must be a YAML file, or one of {', '.join(shipped())}; there is no {spec!r}"
        )
    return path


def _with_shipped_data(found: Mapping[str, Any]) -> dict[str, Any]:
    data = str(_SHIPPED.parents[1] / "data")
    return {
        name: value.replace(_HERE, data) if isinstance(value, str) else value for name, value in found.items()
    }
