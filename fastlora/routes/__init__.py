"""The code that computes a call: which one, why, and each of them."""
