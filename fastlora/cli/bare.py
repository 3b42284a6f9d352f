"""The command line without click and rich: `fastlora info`, and for all else what must be installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastlora.accounting.gpus import GPUS
from fastlora.cli.info import DTYPES, InfoOptionError, answer
from fastlora.routes.backend import BackendError, get_backend
from fastlora.version import __version__


def run(arguments: Sequence[str], missing: str) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: The arguments after the program's name.
        missing: The packages that are not installed, in words.
    """
    install = f'{missing}: pip install "fastlora-triton[demo]"'
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"fastlora, version {__version__}\n")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"Usage: fastlora info [OPTIONS]\n\nThe other commands need {install}\n")
        return 0
    if arguments[0] != "info":
        sys.stderr.write(f"fastlora: the command line needs {install}\n")
        return 1
    return _info(arguments[1:], install)


def _info(arguments: Sequence[str], install: str) -> int:
    parser = argparse.ArgumentParser(
        prog="fastlora info",
        description="Show versions, devices, and which code each device and dtype takes, and why.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="Print JSON instead of text.")
    parser.add_argument("--shape", metavar="M,K,N,r", help="Explain one layer and batch instead.")
    parser.add_argument("--dtype", choices=DTYPES, help="With --shape, of x and W.")
    parser.add_argument("--adapter-dtype", choices=DTYPES, help="With --shape, of A and B.")
    parser.add_argument("--gpu", choices=list(GPUS), help="With --shape, a GPU other than this machine's.")
    chosen = parser.parse_args(arguments)
    try:
        get_backend()
        text = answer(**vars(chosen))
    except (InfoOptionError, ValueError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2 if isinstance(error, InfoOptionError) else 1
    except BackendError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    sys.stderr.write(f"The other commands need {install}\n")
    return 0
