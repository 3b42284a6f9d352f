"""The GPU that is tuned for, and what its owner set about it that a time depends on."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final, NamedTuple

import torch

from fastlora.formula.cost import Cost

_ASKED: Final = {
    "driver": "driver_version",
    "clock": "clocks.sm",
    "most_clock": "clocks.max.sm",
    "power_limit": "power.limit",
    "mig": "mig.mode.current",
}


class Machine(NamedTuple):
    """A device.

    Attributes:
        device: Of torch.
        name: The GPU's.
        rates: (FLOP/s by dtype, bytes/s) by its datasheet; None for an unknown GPU.
    """

    device: torch.device
    name: str
    rates: tuple[dict[torch.dtype, float], float] | None = None

    def floor_us(self, cost: Cost, dtype: torch.dtype) -> float | None:
        """The least time of a pass in microseconds, by the datasheet."""
        if self.rates is None or dtype not in self.rates[0]:
            return None
        return cost.floor_us(self.rates[0][dtype], self.rates[1])

    def facts(self) -> dict[str, str]:
        """What is kept beside the choices: the GPU's name, its driver, clocks, power cap and MIG mode."""
        found = {"gpu": self.name, **dict.fromkeys(_ASKED, "unknown")}
        if self.device.type == "cuda":
            found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(self.device)))
            found |= _asked_of_driver(self.device.index or 0)
        return found


def _asked_of_driver(index: int) -> dict[str, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = f"--query-gpu={','.join(_ASKED.values())}"
    try:
        said = subprocess.run(
            [command, query, "--format=csv,noheader", "-i", str(index)],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip()[:100] for value in said.stdout.splitlines()[0].split(",")]
    return dict(zip(_ASKED, values, strict=False))
