"""PEFT's walk-through of LoRA on an MLP, done by fastlora and, for comparison, by PEFT itself."""
