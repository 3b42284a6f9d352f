"""A mixture of experts with random weights, fine-tuned by every method: `python -m bench.experts`.

Transformers' Qwen3-MoE. LoRA goes to the experts, whose weights are 3-D parameters; all else is frozen, and
gradients run back to the embeddings, so that every method passes them through every layer. PEFT builds
W + s B A for the whole stack of experts in every forward pass; with our layers, and natively, W is read as it
is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from bench.language import Kind, nets_level
from bench.methods import IN_MIXTURES
from bench.methods.experts import UNFUSED_EXPERTS


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
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        config = Qwen3MoeConfig(
            hidden_size=size.hidden,
            moe_intermediate_size=size.inner,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            num_experts=size.experts,
            num_experts_per_tok=size.top_k,
            vocab_size=size.vocabulary,
            use_cache=False,
        )
        self.model: Any = Qwen3MoeForCausalLM(config)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        """Token ids [rows, length] -> the model's output with its loss."""
        wide = self.model.dtype == torch.float64
        self.model.set_experts_implementation("eager" if wide else "grouped_mm")
        embedded = self.model.get_input_embeddings()(input_ids)
        embedded = embedded if embedded.requires_grad else embedded.requires_grad_()
        return self.model(inputs_embeds=embedded, labels=labels)


MIXTURE: Final = Kind(
    name="qwen3-moe",
    sizes=SIZES,
    build=Mixture,
    adapts=lambda name, module: name.endswith(".mlp.experts"),
    checked_layers=1,
    usual={"cpu": (["small"], 256), "cuda": (["Qwen3-30B-A3B"], 4096)},
    reference=UNFUSED_EXPERTS,
)


main = nets_level("experts", __doc__, MIXTURE, IN_MIXTURES, rank=8, modes=["eager"])

if __name__ == "__main__":
    main()
