"""The nets that are fine-tuned whole, and the ways to run them."""
