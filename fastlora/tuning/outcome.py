"""What a contest found."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from fastlora.measuring.timing import Quartiles, quartiles, ratio
from fastlora_kernels.tables import Tile

# Of every contest.
RANK: Final = 16


class Outcome(NamedTuple):
    """What a contest found.

    Attributes:
        shape: (M, K, N).
        times: Microseconds of each tile, and of VENDOR, one for each round.
        failures: Why tiles have no times, a line each.
    """

    shape: tuple[int, int, int]
    times: dict[Tile | str, list[float]]
    failures: list[str]

    def ratio(self, one: Tile | str, other: Tile | str) -> Quartiles:
        """Of the time of one over the time of the other, round by round."""
        return ratio(self.times[one], self.times[other])

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "shape": dict(zip("MKN", self.shape, strict=True)) | {"r": RANK},
            "times": [
                {
                    "tile": tile if isinstance(tile, str) else tile._asdict(),
                    "median_us": round(quartiles(samples).median, 3),
                    "samples_us": [round(sample, 3) for sample in samples],
                }
                for tile, samples in self.times.items()
            ],
            "failures": self.failures,
        }
