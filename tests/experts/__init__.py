"""LoRA for mixtures of experts."""
