"""Where a run took place: device, versions, and which sources."""

from __future__ import annotations

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from fastlora import info
from fastlora.measuring.devices import describe_device

ROOT: Final = Path(__file__).parents[1]

_SOURCES: Final = ("fastlora", "kernels", "bench", "tests")


class Environment(NamedTuple):
    """What figures depend on besides the method.

    Attributes:
        modified: Whether files differed from the commit; None where git does not know, as `commit`.
        sources: SHA-256 over the Python files, which tells versions apart also without git.
    """

    device: dict[str, Any]
    versions: dict[str, str | None]
    commit: str | None
    modified: bool | None
    sources: str

    def matches(self, other: Environment) -> bool:
        """Whether figures from here and there may stand in one file."""
        mine, theirs = ((e.device, e.versions, e.sources) for e in (self, other))
        return mine == theirs


def environment(device: torch.device, commit: str | None = None) -> Environment:
    """Look around.

    Args:
        device: The one that is measured.
        commit: For a copy of the checkout without its .git: the commit it was taken from.
    """
    here = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", *_SOURCES)
    return Environment(
        device=describe_device(device),
        versions={**info.versions(), **_peers_versions()},
        commit=here or commit,
        modified=None if status is None else status != "",
        sources=sources_digest(),
    )


def _peers_versions() -> dict[str, str | None]:
    """Of the installed libraries that layers and nets come from; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in ("peft", "transformers", "loralib", "transformer-engine"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def sources_digest() -> str:
    """SHA-256 over names and contents of the Python files of package, kernels, benches and tests."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git prints; None without git or without a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
