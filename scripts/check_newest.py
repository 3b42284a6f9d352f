"""Run the suite against the newest releases of the ecosystem, and print what broke.

    python scripts/check_newest.py [--out FILE] [--index URL] [-- pytest's arguments]

The test extra pins what was tested; this finds out what to pin next. A fresh environment in a temporary
folder gets torch first (from --index, such as that of PyTorch's CPU builds, or from pip's own), then the
newest release of each package that pip can put together with the others, then this repository without pins.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
ECOSYSTEM = (
    *(
        "torch",
        "triton",
        "numpy",
        "safetensors",
        "huggingface_hub",
        "transformers",
        "peft",
        "accelerate",
        "trl",
    ),
    *("click", "rich", "matplotlib", "hypothesis", "pytest", "pytest-benchmark"),
)
# A broken test is put down to the first of these whose name is in its path or in its last lines.
BLAMED = ("trl", "accelerate", "transformers", "peft", "huggingface_hub", "safetensors", "triton")


def install(folder: Path, index: str | None) -> Path:
    """Make the environment; its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *(["--index-url", index] if index else []), "torch"], check=True)
    # torch's Linux builds with CUDA pin the Triton that they bring.
    rest = [name for name in ECOSYSTEM if name not in ("torch", "triton")]
    subprocess.run([*pip, *rest], check=True)
    if sys.platform == "linux":
        found = subprocess.run([str(python), "-c", "import triton"], capture_output=True, check=False)
        if found.returncode:
            subprocess.run([*pip, "triton"], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """{package: version} in the environment."""
    frozen = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    listed = dict(line.split("==", 1) for line in frozen.splitlines() if "==" in line)
    found = {name.lower().replace("_", "-"): version for name, version in listed.items()}
    return {name: found.get(name.lower().replace("_", "-"), "absent") for name in ECOSYSTEM}


def broken(output: str) -> list[tuple[str, str]]:
    """(test, what it says) of each line in pytest's short summary."""
    lines = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", output, re.MULTILINE)
    return [(test, what or "") for test, what in lines]


def blame(test: str, what: str) -> str:
    """The package that a broken test is put down to; torch where no other is named."""
    return next((name for name in BLAMED if name in test or name in what.lower()), "torch")


def table(found: dict[str, str], faults: list[tuple[str, str]], closing: str) -> str:
    """Library, version, and what broke, in Markdown."""
    lines = ["| library | version | what broke |", "|---|---|---|"]
    for name, version in found.items():
        names = [f"`{test.rpartition('/')[2]}`" for test, what in faults if blame(test, what) == name]
        lines.append(f"| {name} | {version} | {', '.join(names) or 'nothing'} |")
    python = ".".join(map(str, sys.version_info[:3]))
    return "\n".join([*lines, "", f"Python {python}; pytest closed with: {closing}"])


def main() -> int:
    """Install, test, print; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--index", help="where torch comes from; pip's own index by default")
    parser.add_argument("--out", type=Path, help="a file for the table, beside standard output")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = install(Path(scratch) / "env", options.index)
        done = subprocess.run(
            [str(python), "-m", "pytest", "-rfE", "-o", "addopts=--strict-markers", *options.pytest],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = done.stdout.strip().splitlines()
        text = table(versions(python), broken(done.stdout), lines[-1] if lines else "nothing")
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
