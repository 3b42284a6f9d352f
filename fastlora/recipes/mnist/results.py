"""The results of the MNIST job, and the results.json that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastlora.recipes.mnist.options import MnistOptions
from fastlora.recipes.results import LoRAResult
from fastlora.recipes.training import Score

ADAPTER: Final = "adapter.safetensors"
PICTURE: Final = "mnist.png"


class Parameters(NamedTuple):
    """The number of parameters.

    Attributes:
        base: Parameters in the net.
        lora: Parameters in A and B of all layers; 0 without LoRA.
        total: The sum of both.
        percent: `lora` in percent of `base`.
    """

    base: int
    lora: int
    total: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class MnistResult(LoRAResult):
    """Figures and proofs of one run. Those that do not apply if all weights were trained are None then.

    Attributes:
        train_digits: The number of digits to train on.
        test_digits: The number of digits to test on.
        digit: The digit that the net was fine-tuned on.
        parameters: The numbers of parameters.
        base: Test of the net before fine-tuning.
        on: Test after it, with LoRA on.
        off: Test after it, with LoRA off.
        losses: The loss of each batch of fine-tuning.
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
        """The results of the job, in JSON's types."""
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
