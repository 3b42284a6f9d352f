"""A PEFT script with fastlora's forward: the line marked below is all that changes.

    pip install "fastlora-triton[peft]"
    python examples/peft_one_line.py

It runs as it stands, offline and on any machine: the model is a Llama with small random weights, and the data
are sequences in which each token is the one before, plus one.
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fastlora.integrations.peft import accelerate_peft, forward_counts


def main() -> None:
    """Train for some steps and save PEFT's adapter."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="peft-example", help="a folder for the adapter (%(default)s)")
    options = parser.parse_args()

    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")
    )
    print(accelerate_peft(model))  # the one line

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(options.steps):
        tokens = torch.randint(48, (16, 1)) + torch.arange(16)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, options.steps // 10) == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    print("forwards:", dict(forward_counts(model)))
    model.save_pretrained(options.out)
    print("saved", options.out)


if __name__ == "__main__":
    main()
