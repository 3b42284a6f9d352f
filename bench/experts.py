"""A mixture of experts with random weights, fine-tuned by every method: `python -m bench.experts`.

Transformers' Qwen3-MoE. LoRA goes to the experts, whose weights are 3-D parameters; all else is frozen, and
gradients run back to the embeddings, so that every method passes them through every layer. PEFT builds
W + s B A for the whole stack of experts in every forward pass; with our layers, and natively, W is read as it
is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import click
import torch
from torch import nn

from bench.level import POSITIVE, Level, level, several
from bench.measure import measure_task, on_record
from bench.methods import IN_MIXTURES
from bench.methods.experts import UNFUSED_EXPERTS
from bench.methods.method import Update
from bench.step import ADAMS, MODES
from bench.task import Batch, Outcome, Task, seeded

LEVEL = "experts"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Sizes and dtype by device, unless asked otherwise.
_USUAL: dict[str, tuple[list[str], int, str]] = {
    "cpu": (["small"], 256, "float32"),
    "cuda": (["Qwen3-30B-A3B"], 4096, "bfloat16"),
}


class Size(NamedTuple):
    """What tells one mixture from another; `hidden` and `inner` count columns."""

    hidden: int
    inner: int
    layers: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    vocabulary: int


# The last has the shapes of its config.json, and as many layers as show one.
SIZES: Final = {
    "tiny": Size(64, 32, 2, 4, 2, 4, 2, 256),
    "small": Size(512, 256, 2, 32, 4, 8, 4, 1024),
    "Qwen3-30B-A3B": Size(2048, 768, 4, 128, 8, 32, 4, 32768),
}


class Mixture(nn.Module):
    """The model; in fp64, which torch's grouped product does not know, by Transformers' plain loop."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.model = _qwen(size)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Token ids [rows, length] -> the model's output with its loss."""
        wide = self.model.dtype == torch.float64
        self.model.set_experts_implementation("eager" if wide else "grouped_mm")
        embedded = self.model.get_input_embeddings()(tokens)
        embedded = embedded if embedded.requires_grad else embedded.requires_grad_()
        return self.model(inputs_embeds=embedded, labels=tokens)


def mixture_task(
    name: str,
    length: int,
    update: Update,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
) -> Task:
    """A mixture with LoRA on every module of experts; with fewer decoder layers for a check.

    Raises:
        ImportError: If Transformers is not installed.
    """
    size = SIZES[name] if layers is None else SIZES[name]._replace(layers=layers)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"tokens": torch.randint(size.vocabulary, (1, length), generator=generator).to(device)}
        for _ in range(4)
    ]

    def build() -> nn.Module:
        with seeded(device, dtype):
            return Mixture(size).train()

    return Task(
        name=f"qwen3-moe-{name}",
        shape={"batch": 1, "length": length, **size._asdict(), "r": update.r},
        dtype=dtype,
        build=build,
        names=[f"model.model.layers.{at}.mlp.experts" for at in range(size.layers)],
        update=update,
        batches=batches,
        run=_run,
        reference=UNFUSED_EXPERTS,
    )


def _qwen(size: Size) -> Any:
    try:
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    except ImportError as error:
        raise ImportError('this level needs Transformers: pip install "fastlora-triton[peers]"') from error
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=size.hidden,
            moe_intermediate_size=size.inner,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.hidden // size.heads,
            num_experts=size.experts,
            num_experts_per_tok=size.top_k,
            vocab_size=size.vocabulary,
            use_cache=False,
        )
    )


def _run(model: nn.Module, batch: Batch) -> Outcome:
    outcome = model(batch["tokens"])
    return Outcome(outcome.loss, outcome.logits)


@level(LEVEL, 15, IN_MIXTURES)
@several("--adam", ADAMS, ["fused"])
@several("--sizes", SIZES, help="(default: small on a CPU, Qwen3-30B-A3B on a GPU)")
@several("--modes", MODES, ["eager"])
@click.option("--length", type=POSITIVE, help="Tokens in a row (default: 256 on a CPU, 4096 on a GPU).")
@click.option("--rank", type=POSITIVE, default=8, show_default=True)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), help="(default: float32 on a CPU, else bfloat16)")
def main(level: Level, rank: int, **asked: Any) -> None:
    """Measure every size in every mode."""
    results, device = level.results, level.device
    sizes, length, base = _USUAL[device.type]
    dtype, length = _DTYPES[asked["dtype"] or base], asked["length"] or length
    update = Update(rank, 2.0 * rank, 0.0, torch.float32)
    ceilings, here = level.ceilings(dtype), level.present(dtype)
    for size in asked["sizes"] or sizes:
        for mode in asked["modes"]:
            with on_record(results.problems, f"{LEVEL} {size}, {mode}"):
                task = mixture_task(size, length, update, device, dtype)
                checked = mixture_task(size, length, update, device, dtype, layers=1)
                for adam in asked["adam"]:
                    measure_task(results, LEVEL, task, checked, mode, adam, here, ceilings, level.effort)
            level.save()


if __name__ == "__main__":
    main()
