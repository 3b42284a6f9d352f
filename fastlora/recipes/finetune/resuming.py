"""Which checkpoint a run goes on from, and that it is the same run: the same options and the same data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastlora.adapter_files.drafts import write_together
from fastlora.recipes.finetune.options import FinetuneOptions
from fastlora.recipes.finetune.trainer import CHECKPOINTS, whole_checkpoints

_RECORD: Final = "run.json"
# They change neither what is computed nor where.
_FREE: Final = ("resume", "out", "device")


class ResumeError(ValueError):
    """There is nothing to go on from, or it is of another run."""


def starting_point(options: FinetuneOptions, digests: Mapping[str, str]) -> Path | None:
    """The checkpoint to go on from; None starts anew.

    Args:
        options: The job's options.
        digests: Hashes of the data.

    Raises:
        ResumeError: If `resume` is set and there is no whole checkpoint of this run; or if it is not set, and
            there are checkpoints, which a new run would mix with its own.
    """
    folder = options.out / CHECKPOINTS
    found = whole_checkpoints(folder)
    if not options.resume:
        if found:
            raise ResumeError(
                f"out has checkpoints of another run, {str(folder)!r}: go on with it by --resume, take "
                "another --out, or delete them"
            )
        return None
    if not found:
        raise ResumeError(f"resume needs a checkpoint; there is none in {str(folder)!r}")
    told = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    now = _record(options, digests)
    changed = [name for name in now if told.get(name) != now[name]]
    if changed:
        said = ", ".join(f"{name} was {told.get(name)!r}, now {now[name]!r}" for name in changed)
        raise ResumeError(f"resume needs the options and data that the run began with; {said}")
    return found[-1]


def begin(options: FinetuneOptions, digests: Mapping[str, str]) -> None:
    """Write down what run this is, before its first checkpoint; clear away those that a kill cut short."""
    folder = options.out / CHECKPOINTS
    whole = set(whole_checkpoints(folder))
    for path in folder.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_record(options, digests), indent=2) + "\n"
    write_together([(folder / _RECORD, text.encode())])


def _record(options: FinetuneOptions, digests: Mapping[str, str]) -> dict[str, Any]:
    own = {name: value for name, value in options.as_json().items() if name not in _FREE}
    return {**own, **digests}
