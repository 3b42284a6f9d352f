"""A Transformers Llama with random weights, fine-tuned by every method: `python -m bench.model`.

All linear layers but the output head are adapted. The step is split into forward, backward and optimizer, and
taken as it is, with activation checkpointing, and under torch.compile.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import nn

from bench.language import Kind, nets_level
from bench.methods import GROUPED, IN_NETS


class Size(NamedTuple):
    """What tells one Llama from another; `hidden` and `inner` count columns."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int


# From 1B on those of Meta's config.json files: Llama 3.2 1B and 3B, Llama 3.1 8B.
SIZES: Final = {
    "tiny": Size(64, 176, 2, 4, 2, 256),
    "10M": Size(256, 688, 8, 8, 4, 4096),
    "60M": Size(512, 1408, 12, 8, 4, 16384),
    "1B": Size(2048, 8192, 16, 32, 8, 128256),
    "3B": Size(3072, 8192, 28, 24, 8, 128256),
    "8B": Size(4096, 14336, 32, 32, 8, 128256),
}


def _llama(size: Size) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        vocab_size=size.vocabulary,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


LLAMA: Final = Kind(
    name="llama",
    sizes=SIZES,
    build=_llama,
    adapts=lambda name, module: isinstance(module, nn.Linear) and name != "lm_head",
    checked_layers=2,
    usual={"cpu": (["10M"], 256), "cuda": (["1B", "8B"], 2048)},
)


_CHOSEN: Final = ("full", "peft", "fastlora", GROUPED.name)
main = nets_level(
    "model", __doc__, LLAMA, (*IN_NETS, GROUPED.name), _CHOSEN, rank=16, modes=["eager", "checkpoint"]
)

if __name__ == "__main__":
    main()
