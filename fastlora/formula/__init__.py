"""y = x Wᵀ + s (x_d Aᵀ) Bᵀ + b and its gradients: what they are, whatever code computes them."""
