"""The options of the walk-through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from fastlora.recipes.options import AUTO, LoRAOptions
from fastlora.recipes.walkthrough.tasks import HIGHEST_RANK
from fastlora.seeding import check_seed

PEERS: Final = ("peft",)


@dataclass(frozen=True, kw_only=True)
class WalkOptions(LoRAOptions):
    """Options of the walk-through, in addition to those of `LoRAOptions`.

    Attributes:
        alpha: 8 is PEFT's default.
        seed: The seed for the rows, the initial weights, A, and the order of the rows. The result of 50 steps
            on the downstream task with a frozen last layer depends on it: on a CPU, seeds 0 to 4 ended with
            41.0, 75.5, 47.0, 60.5 and 69.5 percent of the test rows right.
        peer: "peft" also runs PEFT, with the same weights, A and order of the rows; None does not.
    """

    HIGHEST_RANK: ClassVar[int] = HIGHEST_RANK
    USES: ClassVar[tuple[str, ...]] = ("sine", "threshold", "pretrain", "A", "same_data", "downstream")

    rank: int = 3
    alpha: float = 8.0
    seed: int = 1
    device: str = AUTO
    peer: str | None = None
    out: Path = Path("mlp-out")

    def _check_own(self) -> None:
        check_seed(self.seed)
        if self.peer not in (None, *PEERS):
            raise ValueError(f"peer must be one of {', '.join(PEERS)}, or None; got {self.peer!r}")
