"""Downloads the full MNIST set by torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

from fastlora.recipes.digits import is_folder_of_digits


class DownloadError(RuntimeError):
    """The full set could not be downloaded."""


def download(folder: Path) -> None:
    """Download those of MNIST's four files that `folder` lacks, in torchvision's layout.

    Raises:
        DownloadError: If torchvision is missing or does not fit this torch, or the download failed.
    """
    if is_folder_of_digits(folder):
        return
    try:
        from torchvision.datasets import MNIST
    # A torchvision built for another torch raises RuntimeError when it registers its operators.
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
