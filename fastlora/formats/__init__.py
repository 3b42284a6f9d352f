"""Formats in which other libraries store a frozen W in fewer bits: a file each, listed in `registry`."""
