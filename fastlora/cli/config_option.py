"""The option --config: a YAML file whose values are the defaults of a command's other options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastlora.recipes.finetune.config_file import ConfigFileError, read_config, shipped


def config_option() -> Callable[[Any], Any]:
    """The option; what is said on the command line counts before what the file says."""
    return click.option(
        "--config",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="A YAML file of these options under their own names, or a recipe that ships: "
        f"{', '.join(shipped())}.",
    )


def _read(context: click.Context, parameter: click.Parameter, spec: str | None) -> None:
    if spec is None:
        return
    names = {each.name for each in context.command.params if each.name and each.name != parameter.name}
    try:
        found = read_config(spec, names)
    except (ConfigFileError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    context.default_map = {**(context.default_map or {}), **found}
