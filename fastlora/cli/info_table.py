"""`fastlora info` as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fastlora.info import Device, Info


def print_info(info: Info, console: Console) -> None:
    """Print versions and settings, then the paths of each device."""
    table = Table(box=None, show_header=False)
    for name, version in info.versions.items():
        table.add_row(name, version or "none")
    for name, value in info.settings.items():
        table.add_row(name, value or "not set")
    console.print(table)
    for device in info.devices:
        console.print()
        console.print(_title(device), soft_wrap=True, highlight=False)
        console.print(_paths(device))


def _title(device: Device) -> str:
    parts = [f"{device.device}: {device.name}"]
    if device.capability is not None:
        parts.append(f"capability {device.capability}")
    if device.memory_bytes is not None:
        parts.append(f"{device.memory_bytes / 2**30:.1f} GiB")
    return ", ".join(parts)


def _paths(device: Device) -> Table:
    table = Table("dtype", "path", "why", box=None)
    for taken in device.paths:
        table.add_row(taken.dtype, taken.path, taken.why)
    return table
