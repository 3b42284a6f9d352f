"""What the results of the jobs with LoRA share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from fastlora.info import versions
from fastlora.recipes.options import LoRAOptions
from fastlora.routes.decide import Route


@dataclass(frozen=True, kw_only=True)
class LoRAResult(ABC):
    """What one run found.

    Attributes:
        options: What was asked for.
        path: The code that the fused layers took, and why; None where there were none.
        seconds: By phase.
        versions: Of what it ran on.
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
        """What the job found, as JSON has it."""

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "options": self.options.as_json(),
            **self.figures(),
            "seconds": self.seconds,
            "versions": self.versions,
        }
