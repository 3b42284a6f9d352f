"""Language models with random weights, fine-tuned by every method: what the levels of them share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click
import torch
from torch import nn

from bench.level import POSITIVE, Level, level, several
from bench.measure import measure_task, on_record
from bench.methods.method import Method, Update
from bench.step import ADAMS, MODES
from bench.task import Batch, Outcome, Task, seeded

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where nothing else is asked for.
_USUAL_DTYPE: Final = {"cpu": "float32", "cuda": "bfloat16"}


class Kind(NamedTuple):
    """A kind of language model.

    Attributes:
        name: Of its nets, before the name of the size.
        sizes: What tells one from another, `layers` and `vocabulary` among it.
        build: Makes a net of a size; called with tokens as `input_ids` and `labels`.
        adapts: Whether LoRA goes to a module, by its name in the net.
        checked_layers: Of the net that is held to fp64: all of a large one would not fit beside it.
        usual: By kind of device the sizes, and tokens in a row, that are measured unless asked otherwise.
        reference: As of a task.
    """

    name: str
    sizes: Mapping[str, Any]
    build: Callable[[Any], nn.Module]
    adapts: Callable[[str, nn.Module], bool]
    checked_layers: int
    usual: Mapping[str, tuple[Sequence[str], int]]
    reference: Method | None = None


def language_task(
    kind: Kind,
    name: str,
    batch: int,
    length: int,
    update: Update,
    device: torch.device,
    dtype: torch.dtype,
    layers: int = 0,
) -> Task:
    """A net of a size, by its name, on `batch` rows of `length` tokens: random ones take no other time.

    With so many decoder layers, if any are named, for a check.
    """
    size = kind.sizes[name]._replace(layers=layers or kind.sizes[name].layers)
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(size.vocabulary, (batch, length), generator=generator) for _ in range(4))

    def build() -> nn.Module:
        with seeded(device, dtype):
            return kind.build(size).train()

    with torch.device("meta"):
        modules = kind.build(size).named_modules()
    return Task(
        name=f"{kind.name}-{name}",
        shape={"batch": batch, "length": length, **size._asdict(), "r": update.r},
        dtype=dtype,
        build=build,
        names=[module_name for module_name, module in modules if kind.adapts(module_name, module)],
        update=update,
        batches=[{"tokens": tokens.to(device)} for tokens in drawn],
        run=_run,
        reference=kind.reference,
    )


def _run(model: nn.Module, batch: Batch) -> Outcome:
    outcome = model(input_ids=batch["tokens"], labels=batch["tokens"])
    return Outcome(outcome.loss, outcome.logits)


def nets_level(
    name: str,
    help: str | None,
    kind: Kind,
    methods: Sequence[str],
    chosen: Sequence[str] = (),
    *,
    rank: int,
    modes: Sequence[str],
) -> click.Command:
    """The command of a level of such nets: every size in every mode with every way to compute Adam."""
    (cpu, cpu_length), (gpu, gpu_length) = kind.usual["cpu"], kind.usual["cuda"]
    sizes_help = f"(default: {' '.join(cpu)} on a CPU, {' '.join(gpu)} on a GPU)"
    length_help = f"Tokens in a row (default: {cpu_length} on a CPU, {gpu_length} on a GPU)."
    dtypes = click.Choice(list(_DTYPES))

    @level(name, help, 15, methods, chosen)
    @several("--adam", ADAMS, ["fused"])
    @several("--sizes", kind.sizes, help=sizes_help)
    @several("--modes", MODES, modes)
    @click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Rows.")
    @click.option("--length", type=POSITIVE, help=length_help)
    @click.option("--rank", type=POSITIVE, default=rank, show_default=True)
    @click.option("--dtype", type=dtypes, help="(default: float32 on a CPU, bfloat16 on a GPU)")
    @click.option("--adapter-dtype", type=dtypes, default="float32", show_default=True)
    def measure(level: Level, rank: int, adapter_dtype: str, **asked: Any) -> None:
        where = level.effort.device
        (sizes, length), dtype = kind.usual[where.type], _DTYPES[asked["dtype"] or _USUAL_DTYPE[where.type]]
        update = Update(rank, 2.0 * rank, 0.0, _DTYPES[adapter_dtype])
        given = (asked["batch"], asked["length"] or length, update, where, dtype)
        methods = level.present(dtype)
        for size, mode in itertools.product(asked["sizes"] or sizes, asked["modes"]):
            with on_record(level.results.problems, f"{name} {size}, {mode}"):
                task = language_task(kind, size, *given)
                few = language_task(kind, size, *given, kind.checked_layers)
                for adam in asked["adam"]:
                    measure_task(level, task, few, mode, adam, methods)
            level.results.save()

    return measure
