"""Triton device code of fastlora and its tile table; imports triton and nothing else."""
