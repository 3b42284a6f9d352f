"""A Transformers Llama with random weights, fine-tuned by every method: `python -m bench.model`.

All linear layers but the output head are adapted. The step is split into forward, backward and optimizer, and
taken as it is, with activation checkpointing, and under torch.compile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from bench.bars import draw_bars
from bench.ceilings import measure_ceilings
from bench.effort import effort_on
from bench.level import add_adam, add_device, finish, fresh_results, level_parser, positive, prepare_torch
from bench.nets import TUNERS, Update
from bench.nets.llama import SIZES, Text, llama_task
from bench.nets.measure import measure_task, present
from bench.nets.modes import MODES
from bench.problems import on_record

LEVEL = "model"
ROUNDS = 15

# Layers of the net that is held to fp64: all of the large ones would not fit beside it.
CHECKED_LAYERS = 2

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what a device can do sets what is not given."""
    parser = level_parser(LEVEL, __doc__.splitlines()[0], ROUNDS)
    add_device(parser, list(TUNERS), ("full", "peft", "fastlora"))
    add_adam(parser, ("fused",))
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, help="(default: 10M on a CPU, 1B and 8B on a GPU)"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "checkpoint"])
    parser.add_argument("--batch", type=positive, default=1, help="rows (default: %(default)s)")
    parser.add_argument(
        "--length", type=positive, help="tokens in a row (default: 256 on a CPU, 2048 on a GPU)"
    )
    parser.add_argument("--rank", type=positive, default=16, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, help="(default: float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument("--adapter-dtype", choices=_DTYPES, default="float32", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.sizes = options.sizes or (["1B", "8B"] if on_gpu else ["10M"])
    options.length = options.length or (2048 if on_gpu else 256)
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size in every mode; the exit status, 1 if a method was wrong or failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    device, dtype = prepare_torch(options), _DTYPES[options.dtype]
    results = fresh_results(LEVEL, arguments, device, options.commit)
    effort = effort_on(device, options.rounds)
    ceilings = measure_ceilings(effort, dtype)
    results.ceilings = ceilings._asdict()
    text = Text(options.batch, options.length)
    update = Update(options.rank, 2.0 * options.rank, 0.0, _DTYPES[options.adapter_dtype])
    for size in options.sizes:
        for mode in options.modes:
            with on_record(results.problems, f"{LEVEL} {size}, {mode}"):
                task = llama_task(size, text, update, device, dtype)
                checked = llama_task(size, text, update, device, dtype, layers=CHECKED_LAYERS)
                tuners, results.absent = present(options.methods, task)
                for adam in options.adam:
                    found = measure_task(LEVEL, task, checked, mode, adam, tuners, ceilings, effort)
                    results.checks += found.checks
                    results.rows += found.rows
                    results.problems += found.problems
            if options.json is not None:
                results.write(options.json)
    return finish(results, options, draw_bars)


if __name__ == "__main__":
    sys.exit(main())
