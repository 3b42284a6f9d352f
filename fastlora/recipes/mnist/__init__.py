"""The MNIST job: fine-tunes a net with LoRA on one digit, and proves what LoRA promises."""
