"""PEFT's walk-through of LoRA on an MLP, done with fastlora and, for comparison, with PEFT."""
