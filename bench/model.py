"""A Transformers Llama with random weights, fine-tuned by every method: `python -m bench.model`.

All linear layers but the output head are adapted. The step is split into forward, backward and optimizer, and
taken as it is, with activation checkpointing, and under torch.compile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from bench.level import POSITIVE, Names, keep_ceilings, level, net_options
from bench.measure import measure_task, on_record, present
from bench.methods import IN_NETS
from bench.methods.method import Update
from bench.nets.llama import SIZES, Text, llama_task
from bench.nets.modes import MODES
from bench.results import Results
from bench.settings import Effort

LEVEL = "model"

# Layers of the net that is held to fp64: all of the large ones would not fit beside it.
CHECKED_LAYERS = 2

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# (sizes, tokens in a row, dtype) by device, unless asked otherwise.
_USUAL: dict[str, tuple[list[str], int, str]] = {
    "cpu": (["10M"], 256, "float32"),
    "cuda": (["1B", "8B"], 2048, "bfloat16"),
}


@level(LEVEL, 15, IN_NETS, ("full", "peft", "fastlora"))
@net_options(("fused",))
@click.option("--sizes", type=Names(list(SIZES)), help="(default: 10M on a CPU, 1B and 8B on a GPU)")
@click.option("--modes", type=Names(list(MODES)), default=["eager", "checkpoint"], show_default=True)
@click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Rows.")
@click.option("--length", type=POSITIVE, help="Tokens in a row (default: 256 on a CPU, 2048 on a GPU).")
@click.option("--rank", type=POSITIVE, default=16, show_default=True)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), help="(default: float32 on a CPU, else bfloat16)")
@click.option("--adapter-dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
def main(
    results: Results, device: torch.device, effort: Effort, json: Path | None, rank: int, **asked: Any
) -> None:
    """Measure every size in every mode."""
    sizes, length, base = _USUAL[device.type]
    dtype, text = _DTYPES[asked["dtype"] or base], Text(asked["batch"], asked["length"] or length)
    update = Update(rank, 2.0 * rank, 0.0, _DTYPES[asked["adapter_dtype"]])
    ceilings = keep_ceilings(results, effort, [dtype])[dtype]
    here, results.absent = present(asked["methods"], device, dtype)
    for size in asked["sizes"] or sizes:
        for mode in asked["modes"]:
            with on_record(results.problems, f"{LEVEL} {size}, {mode}"):
                task = llama_task(size, text, update, device, dtype)
                checked = llama_task(size, text, update, device, dtype, layers=CHECKED_LAYERS)
                for adam in asked["adam"]:
                    results.add(measure_task(LEVEL, task, checked, mode, adam, here, ceilings, effort))
            if json is not None:
                results.write(json)


if __name__ == "__main__":
    main()
