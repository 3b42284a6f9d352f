"""The `fastlora` command's entry; the commands themselves are in `fastlora.cli.commands`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; where its extra is missing, what torch alone can answer."""
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
        # Whoever read has gone, as `head` does; what is left in the buffer must not fail at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
