"""Everything a GPU is needed for, in one command: `python -m bench.gpu --out DIR`.

Correctness first, then the search for tiles, then the device's ceilings and every method in turn with the
tiles that were found, the cases of most worth first. The results file is written after each step, so a run
that is ended leaves what it measured, and the next one with the same --out goes on there.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import click
import torch
from rich.console import Console

import fastlora
from bench.environment import ROOT, environment
from bench.methods import METHODS
from bench.methods.lorafusion import CHECKOUT
from bench.pictures import draw_groups
from bench.results import Results, open_results
from bench.run import Run, say
from bench.settings import DRY, GPU, Setting
from bench.tables import print_header, print_summary

# Triton's interpreter; and what torch.compile does to make later compilations quicker, which takes longest.
_DRY_SURROUNDINGS: Final = {
    "TRITON_INTERPRET": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}

# Folded the tables cannot be read.
_WIDTH: Final = 400


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for what is found.")
@click.option("--dry-run", is_flag=True, help="Every step on the CPU, tiny; its times mean nothing.")
@click.option("--only", type=click.Choice(["correctness", "tuning", "measure"]), help="One part of the run.")
@click.option("--seconds", default=510.0, show_default=True, help="Begin nothing later than this.")
@click.option("--lorafusion", type=click.Path(path_type=Path), help="A checkout of LoRAFusion to measure.")
@click.option("--commit", help="The commit, where the sources are a copy without .git.")
def main(
    out: Path, dry_run: bool, only: str | None, seconds: float, lorafusion: Path | None, commit: str | None
) -> None:
    """Run what was asked for; exits with status 1 if a test, the soak, a check or a step failed."""
    start = time.monotonic()
    refuse_what_cannot_run(out, dry_run=dry_run, lorafusion=lorafusion)
    setting = DRY if dry_run else GPU
    if dry_run:
        os.environ.update(_DRY_SURROUNDINGS)
        torch.set_num_threads(1)  # products this small only wait for their threads
    if lorafusion:
        os.environ[CHECKOUT] = str(lorafusion.resolve())
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results = open_results(path, fresh_results(setting, commit))
    print_header(results, Console(width=_WIDTH))
    for method in METHODS.values():
        say(f"method    {method.name}: {method.about}")
    if dry_run:
        say("dry run   every step at tiny sizes on the CPU; the times below mean nothing")
    run = Run(results, setting, path, deadline=start + seconds)
    steps = [only] if only else ["correctness", "tuning", "measure"]
    if "correctness" in steps:
        run.check_correctness(then_tune="tuning" in steps)
    if "tuning" in steps:
        run.tune()
    if "measure" in steps:
        run.compile()
        with fastlora.set_backend("triton"):
            run.measure()
    report(results, out)
    say(f"{time.monotonic() - start:.0f} s; results in {path}")
    sys.exit(1 if results.failures() else 0)


def refuse_what_cannot_run(out: Path, *, dry_run: bool, lorafusion: Path | None) -> None:
    """Exit with status 2 before anything is written."""
    if lorafusion and not lorafusion.is_dir():
        raise click.UsageError(f"--lorafusion must be a folder; got {lorafusion}")
    if dry_run and out.resolve().is_relative_to(ROOT / "bench" / "results"):
        raise click.UsageError(
            "--out must not lie in bench/results for a dry run: what lies there is measured"
        )
    if not dry_run and not torch.cuda.is_available():
        raise click.UsageError("torch sees no GPU; --dry-run runs every step on the CPU")
    if not dry_run and os.environ.get("TRITON_INTERPRET") == "1":
        raise click.UsageError("TRITON_INTERPRET=1 would time the interpreter; unset it")


def fresh_results(setting: Setting, commit: str | None) -> Results:
    """Results with nothing in them yet."""
    return Results(
        environment=environment(setting.device, commit),
        command=shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]]),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def report(results: Results, out: Path) -> None:
    """Print the tables, and leave them and the picture beside the results."""
    with (out / "summary.txt").open("w", encoding="utf-8") as file:
        for console in (Console(width=_WIDTH), Console(width=_WIDTH, file=file)):
            print_summary(results, console)
    if results.rows:
        try:
            draw_groups(results, out / "linear.png")
        except ImportError as error:
            say(f"no picture: {error}")


if __name__ == "__main__":
    main()
