"""Matrices for the job: a random one of low rank, or the weight of a layer in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlora.arguments import check_rank
from fastlora.model.name_matching import listed


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or has no such matrix."""


def random_matrix(N: int, K: int, rank: int, seed: int) -> Tensor:
    """A random [N, K] fp32 matrix of this rank: the product of two matrices with normal entries.

    Raises:
        TypeError: If a size or the rank is not an int.
        ValueError: If a size is below 1, or the rank not in 1 ... min(N, K).
    """
    for name, size in (("N", N), ("K", K), ("true rank", rank)):
        check_rank(size, name)
    if rank > min(N, K):
        raise ValueError(f"true rank must be at most {min(N, K)}, the smaller side; got {rank}")
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(N, rank, generator=generator, dtype=torch.float64)
    A = torch.randn(rank, K, generator=generator, dtype=torch.float64)
    return (B @ A).float()


def layer_weight(checkpoint: Path, layer: str | None) -> Tensor:
    """The weight of a layer in a checkpoint. Nothing else is read from it, and no code in it is run.

    Args:
        checkpoint: A safetensors file, a folder of them, or a state_dict that torch.save wrote.
        layer: Name of a matrix, or of its module; may be None if there is only one matrix.

    Raises:
        CheckpointError: If the file is damaged, or has no such matrix (the message lists those it has).
        ImportError: If safetensors is needed and not installed.
        OSError: If a file cannot be opened.
    """
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    if not files:
        raise CheckpointError(f"checkpoint must hold safetensors files; {checkpoint} has none")
    tables = [
        _safetensors(file) if file.suffix == ".safetensors" else _state_dict(file) for file in files
    ]  # fmt: skip
    known = {name: read for table in tables for name, read in table.items()}
    wanted = list(known) if layer is None else [layer, f"{layer}.weight"]
    found = [name for name in wanted if name in known]
    if not found or (layer is None and len(found) > 1):
        names = listed(known) or "of which there are none"
        raise CheckpointError(f"layer must be one of the checkpoint's matrices, {names}; got {layer!r}")
    tensor: Tensor = known[found[0]]()
    return tensor


def _safetensors(path: Path) -> Mapping[str, Any]:
    """{name: a function that reads it} of the matrices of a file."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            'safetensors files need safetensors: pip install "fastlora-triton[adapters]"', name=error.name
        ) from error
    with path.open("rb"):  # a missing file raises OSError, and not an error of safetensors
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if len(file.get_slice(name).get_shape()) == 2]  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} must be a whole safetensors file; {error}") from error

    def read(name: str) -> Tensor:
        with safetensors.safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return {name: (lambda name=name: read(name)) for name in names}


def _state_dict(path: Path) -> Mapping[str, Any]:
    with path.open("rb"):
        pass
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # On a foreign file torch.load raises errors of many types, such as pickle's and zipfile's.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} must be a state_dict that torch.save wrote; {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a state_dict; it holds a {type(content).__name__}")
    return {
        name: (lambda tensor=tensor: tensor)
        for name, tensor in content.items()
        if isinstance(tensor, Tensor) and tensor.dim() == 2
    }
