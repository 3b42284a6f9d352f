"""Run the suite against the newest releases of the ecosystem, and print what broke.

    python scripts/check_newest.py [--doc] [--index URL | --python FILE] [-- pytest's arguments]

The test extra pins what was tested; this finds out what to pin next. A fresh environment in a temporary
folder gets torch first (from --index, such as that of PyTorch's CPU builds, or from pip's own), then the
newest release of each package that pip can put together with the others, then this repository without pins.
--python takes an environment that is there instead. --doc writes the table into docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "compatibility.md"
# pytest's statuses of a run that came to its end: all passed, or some failed.
_RAN = (0, 1)
MARKS = ("<!-- found -->", "<!-- end of found -->")
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
    *("click", "rich", "matplotlib", "hypothesis", "pytest", "pytest-benchmark", "pytest-xdist"),
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
    # The summary alone: logs that a failure quotes have lines with ERROR too. A test's id may hold spaces.
    summary = output.rpartition("short test summary info")[2]
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", summary, re.MULTILINE)


def blame(test: str, what: str) -> str:
    """The package that a broken test is put down to; torch where no other is named."""
    return next((name for name in BLAMED if name in test or name in what.lower()), "torch")


def table(found: dict[str, str], faults: list[tuple[str, str]]) -> str:
    """Library, version, and what broke, in Markdown."""
    lines = ["| library | version | what broke |", "|---|---|---|"]
    for name, version in found.items():
        names = [f"`{test.rpartition('/')[2]}`" for test, what in faults if blame(test, what) == name]
        lines.append(f"| {name} | {version} | {', '.join(names) or 'nothing'} |")
    return "\n".join(lines)


def with_found(page: str, text: str) -> str:
    """The page with the text between the marks."""
    before, _, rest = page.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise ValueError(f"{DOC.name} must have the lines {MARKS[0]} and {MARKS[1]}")
    return f"{before}{MARKS[0]}\n{text}\n{mark}{after}"


def check(python: Path, arguments: list[str]) -> tuple[int, str]:
    """Run the tests with this Python; pytest's exit status, and the table with what was run."""
    command = ["pytest", "-rfE", "-p", "no:cacheprovider", *arguments]
    # Tests start processes of their own, which must find this repository too.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [str(python), "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    version = subprocess.run([str(python), "-V"], capture_output=True, text=True, check=True).stdout.strip()
    closing = f"{version}, `{' '.join(command)}`: {lines[-1].strip('= ') if lines else 'nothing'}"
    return done.returncode, f"{table(versions(python), broken(done.stdout))}\n\n{closing}"


def main() -> int:
    """Install, test, print; the exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--index", help="where torch comes from; pip's own index by default")
    where.add_argument("--python", type=Path, help="run this Python as it is; nothing is installed")
    parser.add_argument("--doc", action="store_true", help="write the table into docs/compatibility.md")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = options.python or install(Path(scratch) / "env", options.index)
        status, text = check(python, options.pytest)
    print(text)
    if options.doc and status in _RAN:
        page = DOC.read_text(encoding="utf-8")
        DOC.write_text(with_found(page, text), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
