"""Options: what the jobs with LoRA share, and how any job's are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from fastlora.arguments import check_alpha, check_rank

AUTO: Final = "auto"


class LoRAOptions:
    """Base of a frozen dataclass that gives these fields its own defaults; each is checked when it is made.

    Attributes:
        rank: Of the update, r.
        alpha: The update is scaled by alpha / r.
        seed: Of all that is random.
        device: Such as "cpu" or "cuda"; "auto" is the GPU where there is one.
        out: Folder that the results are written to; made if need be.
        HIGHEST_RANK: The highest that an update of the job's net can have.
        USES: What the seed determines besides the net's first weights.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is out of range.
    """

    rank: int
    alpha: float
    seed: int
    device: str
    out: Path
    HIGHEST_RANK: ClassVar[int]
    USES: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if check_rank(self.rank, "rank") > self.HIGHEST_RANK:
            raise ValueError(
                f"rank must be at most {self.HIGHEST_RANK}: no update of this net's layers has a higher one; "
                f"got {self.rank}"
            )
        if check_alpha(self.alpha) in (None, 0.0):
            raise ValueError(f"alpha must be a finite number other than 0; got {self.alpha!r}")
        self._check_own()
        self.torch_device()

    def _check_own(self) -> None:
        """Check what the job has besides."""

    def torch_device(self) -> torch.device:
        """The device meant; ValueError if torch cannot use it."""
        if self.device == AUTO:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        # An unknown name is a RuntimeError, a torch built without CUDA an AssertionError.
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device must be one that torch can use here; got {self.device!r}: {reason}"
            ) from error
        if device.type == "meta":
            raise ValueError("device must be one that holds data; got 'meta'")
        return device

    def generator(self, use: str) -> torch.Generator:
        """A fresh CPU generator for one of the uses, so that none depends on how much another draws."""
        return torch.Generator().manual_seed(self.seed * len(self.USES) + self.USES.index(use))

    def as_json(self) -> dict[str, Any]:
        """Each option as JSON has it: paths and dtypes as text."""
        return {
            name: value if value is None or isinstance(value, (bool, int, float)) else str(value)
            for name, value in vars(self).items()
        }


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError about `name` unless it is an int of at least `least`."""
    wanted = f"{name} must be an int of at least {least}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wanted)
    # A torch.Generator takes 64 bits, of which the jobs' streams need some; and nobody counts so far.
    if not least <= value < 2**60:
        raise ValueError(wanted)
