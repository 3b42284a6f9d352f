"""What runs here: versions, devices, and which code each device and dtype takes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from fastlora.arguments import dtype_name
from fastlora.formats.format import Format
from fastlora.formats.registry import FORMATS
from fastlora.routes.backend import BackendError
from fastlora.routes.route import route_on
from fastlora.tables import Part, Shown, Table
from fastlora.version import __version__

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SETTINGS = ("FASTLORA_BACKEND", "TRITON_INTERPRET")


@dataclass(frozen=True)
class PathTaken:
    """The code that tensors of one dtype take on one device.

    Attributes:
        dtype: Its name, such as "bfloat16".
        path: "triton", "interpreter" or "torch"; "error" where a layer would raise.
        why: The reason.
    """

    dtype: str
    path: str
    why: str


@dataclass(frozen=True)
class Device:
    """A device that torch sees.

    Attributes:
        device: Its name in torch, such as "cuda:0".
        name: What it is.
        capability: Compute capability of a CUDA GPU, architecture of a ROCm one; None for the CPU.
        memory_bytes: Of a GPU; None for the CPU.
        paths: One entry for each dtype.
        choices: Of a GPU, what `fastlora tune` measured on it, or why nothing of it is used.
        persistent: Of a GPU, when its persistent kernels are taken, or why they are not.
    """

    device: str
    name: str
    capability: str | None
    memory_bytes: int | None
    paths: tuple[PathTaken, ...]
    choices: str | None = None
    persistent: str | None = None


@dataclass(frozen=True)
class Info(Shown):
    """Everything `fastlora info` shows; `str()` of it is that text, in a notebook a table.

    Attributes:
        versions: Of the package, what it runs on and the system; None where something is missing.
        settings: Environment variables that choose the code; None where one is not set.
        devices: The CPU, then each GPU.
        formats: The packed formats of W that LoRA goes on, and the version of the library that makes each;
            None where that is not installed.
    """

    versions: dict[str, str | None]
    settings: dict[str, str | None]
    devices: tuple[Device, ...]
    formats: dict[str, str | None]

    def parts(self) -> Iterator[Part]:
        """Versions and settings, the paths of each device, then the formats."""
        facts = [(name, version or "none") for name, version in self.versions.items()]
        facts += [(name, value or "not set") for name, value in self.settings.items()]
        yield Table(("what runs", "version or setting"), facts, 2)
        for device in self.devices:
            yield ""
            told = [f"{device.device}: {device.name}"]
            if device.capability is not None:
                told.append(f"capability {device.capability}")
            if device.memory_bytes is not None:
                told.append(f"{device.memory_bytes / 2**30:.1f} GiB")
            yield ", ".join(told)
            yield Table(("dtype", "path", "why"), [(p.dtype, p.path, p.why) for p in device.paths], 3)
            if device.choices is not None:
                yield f"tuned: {device.choices}"
            if device.persistent is not None:
                yield f"persistent kernels: {device.persistent}"
        yield ""
        rows = [(about, version or "not installed") for about, version in self.formats.items()]
        yield Table(("packed W", "its library"), rows, 2)


def collect_info() -> Info:
    """Collect versions, settings and devices.

    Raises:
        ValueError: If FASTLORA_BACKEND holds an unknown name.
    """
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return Info(
        versions=versions(),
        settings={name: os.environ.get(name) for name in SETTINGS},
        devices=(_cpu(), *map(_gpu, gpus)),
        formats={one.about: _library(one) for one in FORMATS.values()},
    )


def versions() -> dict[str, str | None]:
    """Versions of fastlora, torch, its CUDA or ROCm, triton, Python and the system."""
    return {
        "fastlora": __version__,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": version_of("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _library(format: Format) -> str | None:
    version = version_of(format.library)
    return version and f"{format.library} {version}"


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Device:
    cores = os.cpu_count()
    name = f"{platform.machine()}, {cores} cores, torch uses {torch.get_num_threads()} threads"
    return Device("cpu", name, None, None, _paths(torch.device("cpu")))


def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    if torch.version.hip is not None:
        capability = properties.gcnArchName
    device = torch.device("cuda", index)
    facts = str(device), properties.name, capability, properties.total_memory
    return Device(*facts, _paths(device), _choices(device), _persistent(device))


def _choices(device: torch.device) -> str:
    if version_of("triton") is None:
        return "triton is not installed"
    from fastlora.routes.architecture import architecture_of
    from fastlora.routes.choices import loaded

    found = loaded(architecture_of(device))
    if found.choices is None:
        return f"not used: {found.why}" if found.path else found.why
    packed = sum(key.base != "plain" for key in found.choices.entries)
    of_these = f" ({packed} over a packed W)" if packed else ""
    return f"{len(found.choices.entries)} passes{of_these}, {found.why}, in {found.path}"


def _persistent(device: torch.device) -> str:
    if version_of("triton") is None:
        return "not here: triton is not installed"
    from fastlora.routes.persistent import told

    return told(device)


def _paths(device: torch.device) -> tuple[PathTaken, ...]:
    return tuple(_path(device, dtype) for dtype in DTYPES)


def _path(device: torch.device, dtype: torch.dtype) -> PathTaken:
    name = dtype_name(dtype)
    try:
        path = route_on(device, dtype)
    except BackendError as error:
        return PathTaken(name, "error", str(error))
    return PathTaken(name, path.name, path.why)
