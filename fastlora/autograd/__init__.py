"""The formula as torch sees it: a differentiable function, and operators for compilers."""
