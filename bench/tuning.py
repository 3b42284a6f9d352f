"""Search tiles for this GPU: `python -m bench.tuning --device cuda --out DIR`; and choose among routes.

The candidates are compiled in several processes, then `fastlora.tuning` times them in this one. DIR gets
tuning.json with every measurement, and tables/ARCHITECTURE.json: to be committed in the place of the
package's own, or used from where it is with FASTLORA_TABLES=DIR/tables. `choices` is `fastlora tune` for the
layers that a run measures.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch

from bench.compiling import compile_candidates
from bench.environment import environment
from bench.process import outcome
from bench.settings import SETTINGS, Setting


def tuning(setting: Setting, folder: str, seconds: float, commit: str | None) -> dict[str, Any]:
    """The search, with candidates that are compiled; a correctness step's result."""
    from fastlora.tuning import search

    torch.manual_seed(0)
    here = environment(setting.device, commit)._asdict()
    return search.tune(setting.device, Path(folder), seconds, here)


def choices(setting: Setting, folder: str, seconds: float, commit: str | None) -> dict[str, Any]:
    """Hold every route that `fastlora tune` knows to fp64, and time it, for the layers that will be measured.

    Leaves choices.json, which FASTLORA_TUNE_FILE may name, and choices-times.json, which has every
    candidate's time. A correctness step's result: a candidate that failed is out, and no failure of the step.
    """
    from fastlora.tune_model import tune_requests
    from fastlora.tuning.report import Request

    report = tune_requests(
        [Request(case.problem, case.dropout > 0) for case in setting.cases],
        minutes=seconds / 60,
        path=Path(folder) / "choices.json",
        dry_run=setting.device.type == "cpu",
        in_order=True,
    )
    text = json.dumps(report.as_dict(), indent=1) + "\n"
    (Path(folder) / "choices-times.json").write_text(text, encoding="utf-8")
    better = sum(one.gain > 1 for one in report.found)
    summary = f"{len(report.found)} passes, {better} by another code; {len(report.skipped)} left out"
    summary += f"; {len(report.failures)} candidates failed"
    return outcome(bool(report.found), summary, failures=report.failures)


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(list(SETTINGS)), required=True)
@click.option("--out", required=True, help="Folder for tuning.json and tables/.")
@click.option("--seconds", default=120.0, show_default=True, help="Begin no class later.")
@click.option("--commit", help="The commit, where the sources are a copy without .git.")
def main(device: str, out: str, seconds: float, commit: str | None) -> None:
    """Print what was found as one line of JSON."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    compile_candidates(torch.device(device))
    found = tuning(SETTINGS[device], out, seconds, commit)
    click.echo(json.dumps(found))
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
