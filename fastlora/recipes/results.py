"""Results: what those of the jobs with LoRA share, and the results.json that every job writes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastlora.info import versions
from fastlora.recipes.options import LoRAOptions
from fastlora.routes.decide import Route

RESULTS: Final = "results.json"


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


def write_results(folder: Path, content: Mapping[str, Any]) -> None:
    """Write results.json."""
    (folder / RESULTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
