"""What all jobs have in common: checking packages first, timing phases, writing all files at the end."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

RESULTS: Final = "results.json"


class MissingExtraError(ImportError):
    """A package that the job needs is not installed."""


def check_extras(what: str, packages: Iterable[str], extra: str) -> None:
    """Raise MissingExtraError unless all packages are installed. Call it before a job's training.

    Args:
        what: What needs the packages, for the message.
        packages: Their import names.
        extra: The extra that installs them.
    """
    for name in packages:
        if find_spec(name) is None:
            raise MissingExtraError(f'{what} needs {name}: pip install "fastlora-triton[{extra}]"')


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds that a `with` block takes to `seconds[phase]`."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


@contextmanager
def staged(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder inside `out`. When the `with` block ends without error, its files move into `out`.

    `out` is created, and checked to be writable, before the block, which may take minutes. After an error or
    an interrupt nothing new is left, and the old files are unchanged.

    Args:
        out: The folder.
        names: Some of the files that will be written; none may be a folder in `out`.

    Raises:
        OSError: If `out` cannot be created or written to.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]  # innermost first
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            if (out / name).is_dir():
                raise IsADirectoryError(f"out must have room for the file {name}; {out / name} is a folder")
        with tempfile.TemporaryDirectory(dir=out, prefix=".fastlora-") as draft:
            yield Path(draft)
            _move(Path(draft), out)
    except BaseException:
        with suppress(OSError):  # a folder that is not empty stays
            for folder in made:
                folder.rmdir()
        raise


def _move(draft: Path, out: Path) -> None:
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        target = out / file.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def write_results(folder: Path, content: Mapping[str, Any]) -> None:
    """Write results.json."""
    (folder / RESULTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
