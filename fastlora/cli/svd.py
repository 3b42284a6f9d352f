"""`fastlora svd`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from fastlora.cli.options import out_option
from fastlora.cli.reporting import reported
from fastlora.lowrank import check_share
from fastlora.recipes.frame import RESULTS
from fastlora.recipes.options import check_count
from fastlora.recipes.svd.job import PICTURE, SvdResult, run
from fastlora.recipes.svd.matrices import CheckpointError, layer_weight, random_matrix


@click.command()
@click.option("--shape", help="N,K of the random matrix.  [default: 10,10]")
@click.option("--true-rank", type=int, help="Rank of the random matrix.  [default: 2]")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, path_type=Path),
    help="Take a layer of this instead: a safetensors file, a folder of them, or a saved state_dict.",
)
@click.option("--layer", help="With --checkpoint, the name of a matrix or of its module.")
@click.option(
    "--rank",
    "r",
    type=int,
    help="Rank of the factors.  [default: that of W, but at most what halves its parameters]",
)
@click.option("--energy", type=float, help="Or: the least rank that keeps this share of the energy, up to 1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is random.")
@out_option("svd-out", "results.json and the picture")
def svd(
    shape: str | None,
    true_rank: int | None,
    checkpoint: Path | None,
    layer: str | None,
    r: int | None,
    energy: float | None,
    seed: int,
    out: Path,
) -> None:
    """Factor a matrix W into B A by its singular values: what it loses, what it saves, and a picture.

    Without --checkpoint, W is random and of low rank.
    """
    with reported(failed=(CheckpointError, ImportError, OSError)):
        check_count("seed", seed, 0)
        if energy is not None:
            check_share(energy)
        W, source = _matrix(shape, true_rank, checkpoint, layer, seed)
        result = run(W, source, r=r, energy=energy, seed=seed, out=out)
    _print(result, out, chosen=r is not None or energy is not None)


def _matrix(
    shape: str | None, true_rank: int | None, checkpoint: Path | None, layer: str | None, seed: int
) -> tuple[Tensor, str]:
    """W, and a description of it."""
    if checkpoint is not None:
        if shape is not None or true_rank is not None:
            raise click.UsageError("--shape and --true-rank are of the random matrix; not with --checkpoint")
        return layer_weight(checkpoint, layer), f"{layer or 'the matrix'} of {checkpoint.name}"
    if layer is not None:
        raise click.UsageError("--layer goes with --checkpoint")
    sizes = (shape or "10,10").split(",")
    if len(sizes) != 2 or not all(size.strip().isdecimal() for size in sizes):
        raise click.UsageError(f"--shape must be two whole numbers N,K; got {shape!r}")
    N, K = map(int, sizes)
    rank = 2 if true_rank is None else true_rank
    return random_matrix(N, K, rank, seed), f"random, of rank {rank}"


def _print(result: SvdResult, out: Path, *, chosen: bool) -> None:
    dense, factored, percent = result.parameters
    kept = f"{result.r}, with {100 * result.energy:.6g}% of the energy"
    if not chosen:
        reason = "the rank of W" if result.r >= result.matrix_rank else "B and A are at most half of W"
        kept += f" ({reason}; --rank or --energy choose another)"
    share = f"{percent:.1f}" if percent >= 1 else f"{percent:.3g}"
    for name, value in (
        ("W", f"{result.N} x {result.K}, {result.source}"),
        ("its rank", str(result.matrix_rank)),
        ("rank r of B A", kept),
        ("|W - B A|", f"{result.error:.3g}, {result.relative_error:.3g} of |W|"),
        ("least possible", f"{result.optimal_error:.3g} by any B A of rank {result.r} (Eckart and Young)"),
        ("parameters", f"{dense:,} of W, {factored:,} of B and A: {share}%"),
        ("y from B A", f"differs from y = x Wᵀ + b by {result.y_error:.3g} of |y|"),
        ("results", str(out / RESULTS)),
        ("picture", str(out / PICTURE)),
    ):
        click.echo(f"{name:<15} {value}")
