"""The options that all jobs with LoRA have, and the checks for the options of any job."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from fastlora.arguments import check_alpha, check_rank

AUTO: Final = "auto"


class LoRAOptions:
    """Base of a job's options, a frozen dataclass with defaults of its own. The constructor checks them.

    Attributes:
        rank: The rank r of each update.
        alpha: Each update is scaled by alpha / r.
        seed: The seed for everything random.
        device: The device, such as "cpu" or "cuda"; "auto" means the GPU if there is one.
        out: Folder to write the results to; it is created if needed.
        HIGHEST_RANK: The highest rank that an update of the job's net can have.
        USES: What the seed determines in addition to the net's initial weights.

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
        """Check the options that only this job has."""

    def torch_device(self) -> torch.device:
        """The device; ValueError if torch cannot use it."""
        if self.device == AUTO:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        # An unknown name raises RuntimeError; a torch built without CUDA raises AssertionError.
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device must be one that torch can use here; got {self.device!r}: {reason}"
            ) from error
        if device.type == "meta":
            raise ValueError("device must be one that holds data; got 'meta'")
        return device

    def generator(self, use: str) -> torch.Generator:
        """A new CPU generator for one of the uses, so that no use depends on how much another draws."""
        return torch.Generator().manual_seed(self.seed * len(self.USES) + self.USES.index(use))

    def as_json(self) -> dict[str, Any]:
        """The options in JSON's types, with paths and dtypes as text."""
        return {
            name: value if value is None or isinstance(value, (bool, int, float)) else str(value)
            for name, value in vars(self).items()
        }


def check_count(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError about `name` unless it is an int of at least `least`."""
    wanted = f"{name} must be an int of at least {least}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(wanted)
    # A seed of torch.Generator has 64 bits, and the jobs multiply it by the number of uses.
    if not least <= value < 2**60:
        raise ValueError(wanted)
