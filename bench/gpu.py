"""Everything a GPU is needed for, in one command: `python -m bench.gpu --out DIR`.

Correctness first, then the search for tiles, then what `fastlora tune` does for the layers that come: each
route and tile is proven and timed. Then the device's ceilings and every method in turn with the tiles that
were found, the cases of most worth first. The results file is written after each step, so a run
that is ended leaves what it measured, and the next one with the same --out goes on there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import click
import torch

import fastlora
from bench.correctness import Steps
from bench.environment import ROOT
from bench.goals import findings
from bench.groups import columns
from bench.level import COMMIT
from bench.methods import METHODS, OWN, Method, present
from bench.pictures import draw
from bench.results import Results, resumed
from bench.run import Run
from bench.settings import DRY, GPU
from bench.tables import parts, say
from fastlora.tables import as_text

# Triton's interpreter; and what torch.compile does to make later compilations quicker, which takes longest.
_DRY_SURROUNDINGS: Final = {
    "TRITON_INTERPRET": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for what is found.")
@click.option("--dry-run", is_flag=True, help="Every step on the CPU, tiny; its times mean nothing.")
@click.option("--only", type=click.Choice(["correctness", "tuning", "measure"]), help="One part of the run.")
@click.option("--seconds", default=510.0, show_default=True, help="Begin nothing later than this.")
@COMMIT
def main(out: Path, dry_run: bool, only: str | None, seconds: float, commit: str | None) -> None:
    """Run what was asked for; exits with status 1 if a test, the soak, a check or a step failed."""
    start = time.monotonic()
    refuse_what_cannot_run(out, dry_run=dry_run)
    setting, warning = (DRY, "a dry run: these times mean nothing") if dry_run else (GPU, "")
    if dry_run:
        os.environ.update(_DRY_SURROUNDINGS)
        torch.set_num_threads(1)  # products this small only wait for their threads
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    results = resumed(Results.begin("bench.gpu", setting.device, commit, out / "results.json"))
    where = ", ".join(filter(None, [results.environment.in_words, warning]))
    say(where)
    for method in METHODS.values():
        say(f"method    {method.name}: {method.about}")
    steps, asked = Steps(results, setting, out), [only] if only else ["correctness", "tuning", "measure"]
    if "correctness" in asked:
        steps.check_correctness(then_tune="tuning" in asked)
    if "tuning" in asked:
        steps.tune()
    if "measure" in asked:
        steps.compile()
        with fastlora.set_backend(setting.backend):
            methods = present_methods(steps)
            cache = results.environment.device["l2_bytes"]
            run = Run(results, setting.how, setting.measurements, cache, start + seconds)
            run.measure(methods)
    summary = as_text(parts(results, findings(results)))
    say(summary)
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    try:
        draw(columns(results.rows), out / "linear.png", where)
    except ImportError as error:
        say(f"no picture: {error}")
    say(f"{time.monotonic() - start:.0f} s; results in {results.path}")
    sys.exit(1 if results.failures() else 0)


def present_methods(steps: Steps) -> list[Method]:
    """The methods that can run; the others are listed in the results with the reason."""
    results, setting = steps.results, steps.setting
    case = setting.cases[0]
    methods, results.absent = present(METHODS, setting.device, case.dtype)
    if hung := steps.hung():
        results.absent |= dict.fromkeys(OWN, f"{', '.join(hung)} did not finish: a kernel may hang")
    for name, why in results.absent.items():
        say(f"absent    {name}: {why}")
    return [method for method in methods if method.name not in results.absent]


def refuse_what_cannot_run(out: Path, *, dry_run: bool) -> None:
    """Exit with status 2 before anything is written."""
    if dry_run and out.resolve().is_relative_to(ROOT / "bench" / "results"):
        raise click.UsageError(
            "--out must not lie in bench/results for a dry run: what lies there is measured"
        )
    if not dry_run and not torch.cuda.is_available():
        raise click.UsageError("torch sees no GPU; --dry-run runs every step on the CPU")
    if not dry_run and os.environ.get("TRITON_INTERPRET") == "1":
        raise click.UsageError("TRITON_INTERPRET=1 would time the interpreter; unset it")


if __name__ == "__main__":
    main()
