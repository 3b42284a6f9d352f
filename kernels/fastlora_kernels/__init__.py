"""The Triton kernels of fastlora and their tile tables. Depends on triton alone."""
