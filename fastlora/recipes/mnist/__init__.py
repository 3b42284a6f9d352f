"""The MNIST job: a net fine-tuned with LoRA on one digit, and what LoRA promises, proved."""
