"""LoRA for mixtures of experts whose weights are 3-D parameters, as in Transformers 5."""
