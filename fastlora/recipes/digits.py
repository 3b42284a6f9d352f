"""MNIST's handwritten digits: the 5,000 that come with the package, or the full set from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastlora.recipes.idx import DigitsError, read_idx

SAMPLE: Final = Path(__file__).with_name("data")

SIDE: Final = 28
CLASSES: Final = 10

# Mean and standard deviation of the pixels of the 60,000 training digits, if 255 counts as 1. torchvision's
# examples use these values.
MEAN: Final = 0.1307
STD: Final = 0.3081

_TRAIN: Final = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST: Final = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Digits(NamedTuple):
    """Images of digits and their labels.

    Attributes:
        images: [n, 28, 28] uint8; 0 is paper, 255 is ink.
        labels: [n] int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def rows(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The images as normalized rows [n, 784] and the labels [n], ready for a net."""
        ink = self.images.flatten(1).to(device=device, dtype=dtype) / 255
        return ink.sub_(MEAN).div_(STD), self.labels.to(device)

    def only(self, digit: int) -> Digits:
        """The images and labels of one digit.

        Raises:
            DigitsError: If there are none.
        """
        chosen = self.labels == digit
        if not chosen.any():
            raise DigitsError(f"there must be a {digit} among the digits to train on; there is none")
        return Digits(self.images[chosen], self.labels[chosen])


class DigitSet(NamedTuple):
    """Digits to train on and others to test on."""

    train: Digits
    test: Digits


def read_sample() -> DigitSet:
    """The digits that come with the package: 4,000 to train on, 1,000 to test on, 100 of each digit."""
    return read_folder(SAMPLE)


def read_folder(folder: Path) -> DigitSet:
    """Read a set of digits from its four IDX files, plain or gzipped.

    Args:
        folder: The folder that holds them, or that holds them in MNIST/raw, as torchvision writes them.

    Raises:
        DigitsError: If a file is damaged, or images and labels do not match.
        FileNotFoundError: If a file is missing.
        OSError: If a file cannot be read.
    """
    files = _find_files(folder)
    missing = [name for name in _TRAIN + _TEST if name not in files]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold MNIST's four IDX files, plain or .gz, in itself or in MNIST/raw; "
            f"missing: {', '.join(missing)}"
        )
    return DigitSet(
        train=_read_pair(*(files[name] for name in _TRAIN)), test=_read_pair(*(files[name] for name in _TEST))
    )


def is_folder_of_digits(folder: Path) -> bool:
    """Whether `read_folder` would find its four files here; their content is not checked."""
    return len(_find_files(folder)) == len(_TRAIN + _TEST)


def _find_files(folder: Path) -> dict[str, Path]:
    """{name: path} of the files in `folder` or in its MNIST/raw, whichever has more of them."""
    places = [
        {
            name: path
            for name in _TRAIN + _TEST
            for path in (place / f"{name}.gz", place / name)  # if both exist, the plain one: it reads faster
            if path.is_file()
        }
        for place in (folder, folder / "MNIST" / "raw")
    ]
    return max(places, key=len)


def _read_pair(images_path: Path, labels_path: Path) -> Digits:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).long()
    if images.shape[1:] != (SIDE, SIDE):
        raise DigitsError(f"{images_path}: images must be {SIDE} x {SIDE}; they are {list(images.shape[1:])}")
    if len(images) != len(labels):
        raise DigitsError(
            f"{images_path} and {labels_path.name} must count the same; they have {len(images)} images "
            f"and {len(labels)} labels"
        )
    if labels.max() >= CLASSES:
        raise DigitsError(f"{labels_path}: labels must be 0 to {CLASSES - 1}; one is {labels.max()}")
    return Digits(images, labels)
