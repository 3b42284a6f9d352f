"""The `fastlora` command's entry; the commands themselves are in `fastlora.cli.commands`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line. Without the extra that it needs, only `fastlora info` works."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    try:
        if missing:
            from fastlora.cli.bare import run

            raise SystemExit(run(sys.argv[1:], " and ".join(missing)))
        from fastlora.cli.commands import fastlora

        fastlora(prog_name="fastlora")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The pipe's reader has ended, as `head` does. Writing the rest of the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
