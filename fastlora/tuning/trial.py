"""One process that proves candidates: `python -m fastlora.tuning.trial JOB` prints a line of JSON for each.

A candidate may hang or take its process down; `proofs` starts another process for those behind it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch

from fastlora.formula.cost import Problem
from fastlora.routes.backend import set_backend
from fastlora_kernels.tables import Tile

Candidate = Tile | str

# The rate of a problem with dropout; any other takes the same code.
DROPOUT = 0.125


class Job(NamedTuple):
    """What candidates are proven for.

    Attributes:
        device: Its type, "cuda" or "cpu"; on the CPU Triton's interpreter runs the kernels.
        direction: "forward" or "backward".
        problem: Shape and dtypes.
        dropout: Whether there is dropout.
        repeats: Runs that must have the same bits.
    """

    device: str
    direction: str
    problem: Problem
    dropout: bool
    repeats: int

    def dumps(self, candidates: list[Candidate]) -> str:
        """The argument of the process."""
        dtypes = (str(dtype).removeprefix("torch.") for dtype in self.problem[4:6])
        problem = [*self.problem[:4], *dtypes, self.problem.base]
        return json.dumps([self.device, self.direction, problem, self.dropout, self.repeats, candidates])

    @classmethod
    def loads(cls, text: str) -> tuple[Job, list[Candidate]]:
        """What `dumps` wrote."""
        device, direction, problem, dropout, repeats, candidates = json.loads(text)
        M, K, N, r, dtype, adapter, base = problem
        of_W, of_A = getattr(torch, dtype), getattr(torch, adapter)
        job = cls(device, direction, Problem(M, K, N, r, of_W, of_A, base), dropout, repeats)
        return job, [one if isinstance(one, str) else Tile(*one) for one in candidates]


def main(text: str) -> None:
    """Prove each candidate in turn."""
    job, candidates = Job.loads(text)
    from fastlora.tuning.contest import Contest

    torch.manual_seed(0)
    # What torch.empty returns is filled with NaN: a program that reads p or q too early finds no old values.
    torch.use_deterministic_algorithms(True)
    with set_backend("triton"):
        dropout = DROPOUT if job.dropout else 0.0
        device = torch.device(job.device)
        contest = Contest(device, job.direction, job.problem, num_sets=1, dropout=dropout, bias=True)
        for one in candidates:
            _say({"failed": _why_failed(contest, one, job.repeats)})


def _why_failed(contest: Any, candidate: Candidate, repeats: int) -> str | None:
    try:
        contest.check(candidate, repeats)
        if contest.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # it may fail in any way; the others are tried
        return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
    return None


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
