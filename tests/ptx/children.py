"""Commands in a process of their own, as pytest's has the kernels replaced by interpreted ones."""

from __future__ import annotations

import os
import subprocess
import sys


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` without TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)
