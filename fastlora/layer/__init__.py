"""The LoRA layer: its frozen weight, its adapters, and every operation that changes them."""
