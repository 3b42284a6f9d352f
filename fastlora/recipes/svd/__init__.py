"""The low-rank job: a matrix factored by its singular values."""
