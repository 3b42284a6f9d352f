"""The fine-tuning job: a language model trained by TRL's SFTTrainer, talked to, and merged."""
