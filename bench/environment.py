"""Where a run took place: device, versions, and which sources."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from fastlora import info
from fastlora.measuring.devices import describe_device

ROOT: Final = Path(__file__).parents[1]

_SOURCES: Final = ("fastlora", "kernels", "bench", "tests")

# The libraries that layers and nets come from.
_PEERS: Final = ("peft", "transformers", "loralib")


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
        return self == other._replace(commit=self.commit, modified=self.modified)

    @property
    def versions_in_words(self) -> str:
        """Of what is installed."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)

    @property
    def short_commit(self) -> str:
        """Its first ten digits."""
        return (self.commit or "unknown")[:10]

    @property
    def in_words(self) -> str:
        """Device, torch and commit in a line."""
        return f"{self.device['name']}, torch {self.versions['torch']}, {self.short_commit}"


def environment(device: torch.device, commit: str | None = None) -> Environment:
    """Look around.

    Args:
        device: The one that is measured.
        commit: For a copy of the checkout without its .git, or with another's: the commit it was taken from.
    """
    here = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", *_SOURCES)
    return Environment(
        device=describe_device(device),
        versions={**info.versions(), **{name: info.version_of(name) for name in _PEERS}},
        commit=commit or here,
        modified=None if commit or status is None else status != "",
        sources=sources_digest(),
    )


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
