"""PEFT's walk-through of LoRA on an MLP, by fastlora and, beside it, by PEFT itself."""
