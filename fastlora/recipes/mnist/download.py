"""The full MNIST set, fetched by torchvision where it is installed."""

from __future__ import annotations

from pathlib import Path

import torch

from fastlora.recipes.digits import is_folder_of_digits


class DownloadError(RuntimeError):
    """The full set could not be fetched."""


def download(folder: Path) -> None:
    """Make `folder` hold MNIST's four files, in torchvision's layout; files that are there stay.

    Raises:
        DownloadError: If torchvision is missing or does not fit this torch, or it could not fetch the files.
    """
    if is_folder_of_digits(folder):
        return
    try:
        from torchvision.datasets import MNIST
    # A torchvision built for another torch fails with a RuntimeError while it registers its operators.
    except (ImportError, RuntimeError, OSError) as error:
        raise DownloadError(
            f"--download needs torchvision, which could not be imported ({error}). Install the build for "
            f"torch {torch.__version__}: pip install torchvision. Or put MNIST's four IDX files into a "
            "folder and give it as --data"
        ) from error
    try:
        MNIST(str(folder), download=True)
    except (RuntimeError, OSError) as error:
        raise DownloadError(f"torchvision could not fetch MNIST into {folder}: {error}") from error
