"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastlora.recipes.options import AUTO

device_option = click.option(
    "--device", default=AUTO, help=f"Such as cpu or cuda; {AUTO}: the GPU where there is one."
)


def out_option(default: str, files: str) -> Callable[[Any], Any]:
    """The option --out, the folder for a job's files; `files` describes them for the help."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        help=f"Folder for {files}.",
    )
