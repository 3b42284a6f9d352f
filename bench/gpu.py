"""Everything a GPU is needed for, in one command: `python -m bench.gpu --out DIR`.

Correctness first, then the search for tiles, then the device's ceilings and every method in turn with the
tiles that were found, the cases of most worth first. The results file is written after each step, so a run
that is ended leaves what it measured, and the next one with the same --out goes on there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import torch

import fastlora
from bench.environment import ROOT, environment
from bench.methods import METHODS
from bench.methods.lorafusion import CHECKOUT
from bench.picture import draw_picture
from bench.results import Results, open_results
from bench.run import Run, say
from bench.settings import DRY, GPU, Setting
from bench.summary import summary

# Triton's interpreter; and what torch.compile does to make later compilations quicker, which takes longest.
_DRY_SURROUNDINGS: Final = {
    "TRITON_INTERPRET": "1",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for.

    Returns:
        The exit status: 0 if all went well, 1 if a test, the soak, a check or a step failed.
    """
    start = time.monotonic()
    options = parse(arguments)
    setting = DRY if options.dry_run else GPU
    if options.dry_run:
        os.environ.update(_DRY_SURROUNDINGS)
        torch.set_num_threads(1)  # products this small only wait for their threads
    if options.lorafusion:
        os.environ[CHECKOUT] = str(options.lorafusion.resolve())
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = open_results(path, fresh_results(setting, options.commit))
    say_header(results, setting)
    run = Run(results, setting, path, deadline=start + options.seconds)
    steps = [options.only] if options.only else ["correctness", "tuning", "measure"]
    if "correctness" in steps:
        run.check_correctness(then_tune="tuning" in steps)
    if "tuning" in steps:
        run.tune()
    if "measure" in steps:
        run.compile()
        with fastlora.set_backend("triton"):
            run.measure()
    report(results, options.out)
    say(f"{time.monotonic() - start:.0f} s; results in {path}")
    return 1 if results.failures() else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 on what cannot run."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, tables and picture")
    parser.add_argument(
        "--dry-run", action="store_true", help="every step on the CPU, tiny; its times mean nothing"
    )
    parser.add_argument("--only", choices=["correctness", "tuning", "measure"], help="one part of the run")
    parser.add_argument(
        "--seconds", type=float, default=510, help="begin nothing later than this (default: %(default)s)"
    )
    parser.add_argument("--lorafusion", type=Path, help="a checkout of LoRAFusion, to measure it as well")
    parser.add_argument("--commit", help="the commit, where the sources are a copy without .git")
    options = parser.parse_args(arguments)
    if options.lorafusion and not options.lorafusion.is_dir():
        parser.error(f"--lorafusion must be a folder; got {options.lorafusion}")
    if options.dry_run and options.out.resolve().is_relative_to(ROOT / "bench" / "results"):
        parser.error("--out must not lie in bench/results for a dry run: what lies there is measured")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run runs every step on the CPU")
    if not options.dry_run and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 would time the interpreter; unset it")
    return options


def fresh_results(setting: Setting, commit: str | None) -> Results:
    """Results with nothing in them yet."""
    return Results(
        environment=environment(setting.device, commit),
        command=shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]]),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def say_header(results: Results, setting: Setting) -> None:
    """What runs where."""
    here = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items() if version)
    say(f"device    {here.device['name']}")
    say(f"versions  {versions}")
    say(f"commit    {here.commit or 'unknown'}{', modified' if here.modified else ''}")
    for method in METHODS.values():
        say(f"method    {method.name}: {method.about}")
    if setting is DRY:
        say("dry run   every step at tiny sizes on the CPU; the times below mean nothing")
    say()


def report(results: Results, out: Path) -> None:
    """Print the tables, and leave them and the picture beside the results."""
    lines = list(summary(results))
    for line in lines:
        say(line)
    (out / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not results.rows:
        return
    try:
        draw_picture(results, out / "linear.png")
    except ImportError as error:
        say(f"no picture: {error}")


if __name__ == "__main__":
    sys.exit(main())
