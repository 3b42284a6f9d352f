"""The formula y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b: its operands, a readable reference and its minimum cost."""
