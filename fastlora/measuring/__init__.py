"""Measuring: times, errors against fp64, random inputs, and properties of devices."""
