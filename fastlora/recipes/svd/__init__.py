"""The low-rank job: factors a matrix by its singular values."""
