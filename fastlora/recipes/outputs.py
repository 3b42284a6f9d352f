"""The output folder of a job: all of its files appear in it, or, if the job fails, none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def staged(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder for drafts inside `out`; when the `with` block ends well, its files move into `out`.

    `out` is made, and seen to be writable, before the block and not after the minutes that it takes. What
    ends in an error or an interrupt leaves nothing behind, and files from before as they were.

    Args:
        out: The folder.
        names: Files that will be written, beside any others; none may be a folder in `out`.

    Raises:
        OSError: If `out` cannot be made or written to.
    """
    made = _make(out)
    try:
        for name in names:
            if (out / name).is_dir():
                raise IsADirectoryError(f"out must have room for the file {name}; {out / name} is a folder")
        with tempfile.TemporaryDirectory(dir=out, prefix=".fastlora-") as draft:
            yield Path(draft)
            _move(Path(draft), out)
    except BaseException:
        with suppress(OSError):  # one that is not empty stays
            for folder in made:
                folder.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; those that were not there before, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _move(draft: Path, out: Path) -> None:
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        target = out / file.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
