"""What the results of all jobs with LoRA have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from fastlora.info import versions
from fastlora.recipes.options import LoRAOptions
from fastlora.routes.route import Route


@dataclass(frozen=True, kw_only=True)
class LoRAResult(ABC):
    """The results of one run.

    Attributes:
        options: The options of the run.
        path: Which code the fused layers ran, and why; None if there were none.
        seconds: {phase: seconds}.
        versions: The versions of the software that it ran on.
    """

    options: LoRAOptions
    path: Route | None
    seconds: dict[str, float]
    versions: dict[str, str | None] = field(default_factory=versions)

    @property
    @abstractmethod
    def proved(self) -> bool:
        """Whether no proof failed."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The results of the job, in JSON's types."""

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "options": self.options.as_json(),
            **self.figures(),
            "seconds": self.seconds,
            "versions": self.versions,
        }
