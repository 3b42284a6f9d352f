"""What the MNIST job found, and the results.json that it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastlora.recipes.options import MnistOptions
from fastlora.recipes.training import Score
from fastlora.routes.decide import Route

RESULTS: Final = "results.json"
ADAPTER: Final = "adapter.safetensors"
PICTURE: Final = "mnist.png"


class Parameters(NamedTuple):
    """How many parameters there are.

    Attributes:
        base: In the net.
        lora: In A and B of all layers; 0 without LoRA.
        total: Together.
        percent: LoRA's, in percent of the base's.
    """

    base: int
    lora: int
    total: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class MnistResult:
    """Figures and proofs of one run; those that fine-tuning all weights does not have are None there.

    Attributes:
        options: What was asked for.
        train_digits: How many digits there were to train on.
        test_digits: How many there were to test on.
        path: The code that the fused layers took, and why; None for the other methods.
        digit: The digit that the net was fine-tuned on.
        parameters: Counts.
        base: Test of the net before fine-tuning.
        on: Test after it, with LoRA on.
        off: Test after it, with LoRA off.
        losses: Of each batch of fine-tuning.
        frozen_identical: Whether W and b of every layer stayed the base's, bit for bit.
        effective_holds: Whether the weight with LoRA on is W + s B A within rounding.
        off_identical: Whether, with LoRA off, every weight and every wrong count is exactly the base's.
        adapter_bytes: Size of the adapter file.
        seconds: By phase.
        versions: Of what it ran on.
    """

    options: MnistOptions
    train_digits: int
    test_digits: int
    path: Route | None
    digit: int
    parameters: Parameters
    base: Score
    on: Score
    off: Score | None
    losses: list[float]
    frozen_identical: bool | None
    effective_holds: bool | None
    off_identical: bool | None
    adapter_bytes: int | None
    seconds: dict[str, float]
    versions: dict[str, str | None]

    @property
    def proved(self) -> bool:
        """Whether no proof failed."""
        return False not in (self.frozen_identical, self.effective_holds, self.off_identical)

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        scores = {"base": self.base, "on": self.on, "off": self.off}
        options = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        return {
            "options": {
                name: value if value is None or isinstance(value, (bool, int, float)) else str(value)
                for name, value in options.items()
            },
            "digits": {"train": self.train_digits, "test": self.test_digits},
            "path": self.path and self.path._asdict(),
            "parameters": self.parameters._asdict(),
            "accuracy": {name: score and score.accuracy for name, score in scores.items()},
            "wrong": {name: score and score.wrong for name, score in scores.items()},
            "digit": self.digit,
            "losses": self.losses,
            "frozen_identical": self.frozen_identical,
            "effective_holds": self.effective_holds,
            "off_identical": self.off_identical,
            "adapter_bytes": self.adapter_bytes,
            "seconds": self.seconds,
            "versions": self.versions,
        }

    def write(self, path: Path) -> None:
        """Write `as_json` to a file."""
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
