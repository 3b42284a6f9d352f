"""LoRA over a whole model: which layers get it, several adapters, and what else is trained."""
