"""The `fastlora` command's entry; the commands themselves are in `fastlora.cli.commands`."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; where its extra is missing, say so in one line and exit with 1."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f'fastlora: the command line needs {" and ".join(missing)}: pip install "fastlora-triton[demo]"\n'
        )
        raise SystemExit(1)
    from fastlora.cli.commands import fastlora

    fastlora(prog_name="fastlora")
