"""LoRA over a whole model: which layers get it, several adapters, what is trained beside them."""
