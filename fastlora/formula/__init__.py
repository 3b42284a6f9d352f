"""y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b: its operands, its oracle and its cost, whatever code computes it."""
