"""What the MNIST job found, and the results.json that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastlora.recipes.mnist.options import MnistOptions
from fastlora.recipes.results import LoRAResult
from fastlora.recipes.training import Score

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
class MnistResult(LoRAResult):
    """Figures and proofs of one run; those that fine-tuning all weights does not have are None there.

    Attributes:
        train_digits: How many digits there were to train on.
        test_digits: How many there were to test on.
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
    """

    options: MnistOptions
    train_digits: int
    test_digits: int
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

    @property
    def proved(self) -> bool:
        """Whether no proof failed."""
        return False not in (self.frozen_identical, self.effective_holds, self.off_identical)

    def figures(self) -> dict[str, Any]:
        """What the job found, as JSON has it."""
        scores = {"base": self.base, "on": self.on, "off": self.off}
        return {
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
        }
