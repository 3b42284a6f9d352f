"""Fine-tune a language model with fastlora and Transformers' Trainer.

    pip install fastlora-triton transformers accelerate
    python examples/trainer.py
    accelerate launch --cpu --num_processes 2 examples/trainer.py

It runs as it stands, offline and on any machine: the model is a Llama with small random weights, and the data
are sequences in which each token is the one before, plus one. Put your own in their places.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import fastlora


class Counting(Dataset):
    """Sequences of tokens that count upward."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.rows = torch.randint(vocabulary - length, (count, 1)) + torch.arange(length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main() -> None:
    """Train, and save the model with the updates merged into its weights."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="trainer-example", help="a folder for the model (%(default)s)")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    fastlora.apply_lora(model, fastlora.LoRAConfig(r=8, alpha=16, dropout=0.05))
    print(fastlora.parameter_report(model))

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Counting(count=1024, length=16, vocabulary=64),
    )
    trainer.train()

    if trainer.is_world_process_zero():
        fastlora.remove_lora(model, merge=True).save_pretrained(options.out)
        print("saved", options.out)


if __name__ == "__main__":
    main()
