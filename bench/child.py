"""A part of a GPU run in a process of its own: `python -m bench.child bench.soak:soak cuda '["graph"]'`."""

from __future__ import annotations

import importlib
import json
import sys

import fastlora
from bench.settings import SETTINGS


def main(target: str, device: str, arguments: str) -> None:
    """Call a function with the device's setting and the arguments; print its result as a line of JSON."""
    module, _, name = target.partition(":")
    with fastlora.set_backend("triton"):
        found = getattr(importlib.import_module(module), name)(SETTINGS[device], *json.loads(arguments))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
